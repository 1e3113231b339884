"""One prompt on several GPUs: the same result, how fast, how much memory?"""
