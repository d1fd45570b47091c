"""Bodies that carry any token mixer: DeiT, PVT, PVTv2, Swin, CSwin.

FLatten, Agent and InLine are configurations of host x mixer.
"""
