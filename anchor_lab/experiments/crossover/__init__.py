"""From which length on AnchorAttention pays, and the cost model of `when="auto"` that follows."""
