package kernels_test

import (
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/llmq/llmq/kernels"
)

// TestSpreadFault: what a goroutine of Spread cannot read is the caller's to recover from, once the others are done; other
// panics stay where they are.
func TestSpreadFault(t *testing.T) {
	memory, err := syscall.Mmap(-1, 0, syscall.Getpagesize(), syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(memory)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for _, workers := range []int{1, 2, 7} {
		for _, bad := range []int{0, 5, 99} {
			var running atomic.Int64
			fault := func() (v any) {
				defer func() { v = recover() }()
				kernels.Spread(100, workers, func(i int) {
					running.Add(1)
					defer running.Add(-1)
					if i == bad {
						t.Error(memory[i])
					}
				})
				return nil
			}()
			at, ok := fault.(interface{ Addr() uintptr })
			if !ok || at.Addr() != uintptr(unsafe.Pointer(&memory[0]))+uintptr(bad) || running.Load() != 0 {
				t.Errorf("%d workers, index %d: %v while %d calls run", workers, bad, fault, running.Load())
			}
		}
	}
}
