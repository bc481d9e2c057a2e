package mmap

import "golang.org/x/sys/unix"

// cool moves pages to where the kernel looks first when memory is short. Those that are merely given up by the process
// count as used lately, and pages that were read ahead and not used yet would go before them.
func cool(pages []byte) { _ = unix.Madvise(pages, unix.MADV_COLD) }
