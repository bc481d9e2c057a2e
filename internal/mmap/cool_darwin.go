package mmap

func cool([]byte) {}
