"""Decoders of the dialects that senders speak; pure, bytes in, rows and counted rejections out."""
