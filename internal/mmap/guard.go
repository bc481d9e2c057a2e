package mmap

import (
	"fmt"
	"runtime/debug"
	"sync"
	"unsafe"
)

// live are the maps that are open, by which a fault's address finds its file.
var (
	liveMu sync.Mutex
	live   = map[*Map][]byte{}
)

func register(m *Map) {
	liveMu.Lock()
	defer liveMu.Unlock()
	live[m] = m.Data
}

func unregister(m *Map) {
	liveMu.Lock()
	defer liveMu.Unlock()
	delete(live, m)
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
	liveMu.Lock()
	defer liveMu.Unlock()
	for m, data := range live {
		// Where the address lies before data, the difference wraps and is larger than any file.
		at := fault.Addr() - uintptr(unsafe.Pointer(unsafe.SliceData(data)))
		if at >= uintptr(len(data)) {
			continue
		}
		if err := m.Changed(); err != nil {
			return err
		}
		return fmt.Errorf("%s: byte %d of %d cannot be read", m.path, at, len(data))
	}
	return nil
}
