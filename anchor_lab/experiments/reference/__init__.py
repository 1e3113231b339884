"""How fast is the reference on a CPU?"""
