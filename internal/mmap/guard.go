package mmap

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"unsafe"
)

// views are where the maps of this process lie, by which a fault's address finds its file. A fault unwinds through calls that
// close the file: a view stays listed until another takes its addresses.
var (
	listMu sync.Mutex
	list   []*view
)

type view struct {
	lo, hi uintptr // the addresses
	path   string
	m      *Map  // nil once it is closed
	err    error // what Changed said then
}

func register(m *Map) {
	lo := uintptr(unsafe.Pointer(unsafe.SliceData(m.Data)))
	v := &view{lo: lo, hi: lo + uintptr(len(m.Data)), path: m.path, m: m}
	listMu.Lock()
	defer listMu.Unlock()
	list = append(slices.DeleteFunc(list, func(o *view) bool { return o.lo < v.hi && v.lo < o.hi }), v)
}

func unregister(m *Map) {
	listMu.Lock()
	defer listMu.Unlock()
	for _, v := range list {
		if v.m == m {
			v.m, v.err = nil, m.Changed()
		}
	}
}

// Guard returns what f returns, or an error that names the file if f reads a page of a Map that is not to be had: the file
// has been cut off, or its disk fails. The system sends SIGBUS for that, which ends the process elsewhere. f's deferred calls
// are made.
//
// Guard sees faults of the goroutine that it is called on, and those that kernels.Spread hands it from its own.
func Guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			if err = faultError(v); err == nil {
				panic(v)
			}
		}
	}()
	return f()
}

// faultError is what a panic says that comes from a page of a map; nil for any other.
func faultError(v any) error {
	fault, ok := v.(interface{ Addr() uintptr })
	if !ok {
		return nil
	}
	listMu.Lock()
	defer listMu.Unlock()
	for _, v := range list {
		if fault.Addr() < v.lo || fault.Addr() >= v.hi {
			continue
		}
		err := v.err
		if v.m != nil {
			err = v.m.Changed()
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("%s: byte %d of %d cannot be read", v.path, fault.Addr()-v.lo, v.hi-v.lo)
	}
	return nil
}
