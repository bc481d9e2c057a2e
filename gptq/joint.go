package gptq

import (
	"context"
	"errors"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// joint quantizes together what several blocks of coupled rows have to quantize at a time, where each block's few rows would leave
// lanes empty: those of queries, keys and values are then as many as there are lanes. Rows without coupling do not need each other,
// so that nobody's result depends on who else is there.
type joint struct {
	f *Factor
	g quant.Grid

	mu      sync.Mutex
	members int // that have not left
	waiting []*request
}

// request is a member's rows, and what becomes of them: rows from first on of weight and of decoded.
type request struct {
	w       *tensor.Matrix
	weight  *quant.Weight
	decoded *tensor.Matrix
	first   int
	err     error
	done    chan struct{}
}

// jointFor returns what blocks on g's grid share, entered by so many of them.
func (f *Factor) jointFor(g quant.Grid, members int) *joint {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.joints == nil {
		f.joints = map[quant.Grid]*joint{}
	}
	j := f.joints[g]
	if j == nil {
		j = &joint{f: f, g: g}
		f.joints[g] = j
	}
	j.mu.Lock()
	j.members += members
	j.mu.Unlock()
	return j
}

// leave says that a member has nothing to quantize any more.
func (j *joint) leave() {
	j.mu.Lock()
	j.members--
	ready := j.ready()
	j.mu.Unlock()
	j.do(ready)
}

// quantize is Factor.Quantize of a member's w, and decodes what it returns, when all members have something to quantize. The rows
// are those of both results from first on.
func (j *joint) quantize(w *tensor.Matrix) (weight *quant.Weight, decoded *tensor.Matrix, first int, err error) {
	r := &request{w: w, done: make(chan struct{})}
	j.mu.Lock()
	j.waiting = append(j.waiting, r)
	ready := j.ready()
	j.mu.Unlock()
	j.do(ready)
	<-r.done
	return r.weight, r.decoded, r.first, r.err
}

// ready takes the requests if there is one of each member. j.mu is held.
func (j *joint) ready() []*request {
	if len(j.waiting) < j.members {
		return nil
	}
	ready := j.waiting
	j.waiting = nil
	return ready
}

// do quantizes requests on the calling goroutine.
func (j *joint) do(requests []*request) {
	if len(requests) == 0 {
		return
	}
	rows := 0
	for _, r := range requests {
		r.first = rows
		rows += r.w.Rows
	}
	all := tensor.New(rows, requests[0].w.Cols)
	for _, r := range requests {
		for i := range r.w.Rows {
			copy(all.Row(r.first+i), r.w.Row(i))
		}
	}
	var weight *quant.Weight
	err := errPanicked
	defer func() { // in a panic too: others would wait for ever
		for _, r := range requests {
			r.weight, r.decoded, r.err = weight, all, err
			close(r.done)
		}
	}()
	// It is short, and not for one member to end that is done for all.
	q, failed := j.f.Quantize(context.Background(), all, j.g)
	if failed == nil {
		q.DecodeTo(all)
	}
	weight, err = q, failed
}

// errPanicked is what the other members hear of a panic of the one that quantizes for all.
var errPanicked = errors.New("gptq: quantizing the rows of several blocks together has panicked")

// joins says whether a block of n coupled rows, quantized by itself, leaves lanes empty.
func joins(n int) bool { return BatchRows(n)%kernels.Lanes != 0 }

// joining is how many of the blocks do.
func joining(outputs []*tensor.Matrix) int {
	n := 0
	for _, h := range outputs {
		if joins(h.Rows) {
			n++
		}
	}
	return n
}
