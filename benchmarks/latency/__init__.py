"""What the latency model is made from: networks, kinds of devices, their timings, the fit.

networks  ->  kinds (a process each)  ->  samples.npz  ->  fit  ->  predict/model.safetensors
"""
