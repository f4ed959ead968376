"""Files, disks, sockets, signals, devices and model folders: what is below everything that has to do with prompts."""
