"""What the latency model is made from: networks, kinds of devices, their timings, the fit.

networks, known, probe_networks -> kinds (a process each) -> samples.npz -> fit -> the model
"""
