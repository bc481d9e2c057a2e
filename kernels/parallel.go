package kernels

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// spare counts who has asked for Spare.
var spare struct {
	sync.Mutex
	n atomic.Int32
}

// beside counts the computations that go on beside another one: Divide.
var beside atomic.Int32

// Processors is how many goroutines computations are spread over: runtime.GOMAXPROCS(0), but for Spare and Divide.
func Processors() int {
	n := 1 + int(beside.Load())
	return max(1, (runtime.GOMAXPROCS(0)-int(min(spare.n.Load(), 1))+n-1)/n)
}

// Divide says that n computations go on side by side until end is called: each of them is spread over its share of the processors. Small ones
// then wait for each other once, where by themselves they would wait after each of their steps.
func Divide(n int) (end func()) {
	beside.Add(int32(n - 1))
	return sync.OnceFunc(func() { beside.Add(int32(1 - n)) })
}

// Spare lets one more goroutine run beside those that compute, so that a message is answered while all processors are at work: the
// operating system gives it a processor at once, where Go's scheduler has it wait for some 10 ms each time. It ends with the call of
// end, or of the last one. GOMAXPROCS is not to be set by others meanwhile.
func Spare() (end func()) {
	add := func(n int) {
		spare.Lock()
		defer spare.Unlock()
		was := min(spare.n.Load(), 1)
		if is := min(spare.n.Add(int32(n)), 1); is != was {
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + int(is-was))
		}
	}
	add(1)
	return sync.OnceFunc(func() { add(-1) })
}

// Parallel calls f for consecutive ranges that cover [0,n), at least grain long but for the last, on
// Processors() goroutines, and returns when all are done. Ranges are handed out as workers come free: f's
// result for an index must not depend on the range that it came in.
func Parallel(n, grain int, f func(lo, hi int)) {
	grain = max(grain, 1)
	// A few ranges per worker even out their speeds.
	processors := Processors()
	step := max(grain, (n+4*processors-1)/(4*processors))
	Spread((n+step-1)/step, processors, func(i int) { f(i*step, min((i+1)*step, n)) })
}

// Spread calls f for each i < n, in order, on up to the given number of goroutines, as they come free; it returns when
// all are done. Where f reads memory that is not to be had, such as a mapped file's that was cut off meanwhile, Spread
// panics on the caller's goroutine, as a call of f there does if debug.SetPanicOnFault is set.
func Spread(n, workers int, f func(i int)) {
	if workers = min(workers, n); workers <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	var fault atomic.Pointer[any]
	work := func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if v := recover(); isFault(v) {
				fault.Store(&v)
				next.Store(int64(n)) // nothing more is of use
			} else if v != nil {
				panic(v)
			}
		}()
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	if v := fault.Load(); v != nil {
		panic(*v)
	}
}

// isFault says whether a panic is the runtime's for an address that cannot be read.
func isFault(v any) bool {
	_, ok := v.(interface{ Addr() uintptr })
	return ok
}
