// Package engine hands out units of work: pure functions of named values to a named value, all of them in a store.
//
// Whoever drives a computation asks for sets of units, one after the other, and finds their values in the store when an Engine
// says that a set is done. Who has made them, and how often, leaves no trace: a unit has one value, whoever makes it. So a
// worker may be lost, be slow, or come back after its unit was given to another, and the driver may itself end and begin
// again: units whose values are there are not done again.
package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/llmq/llmq/store"
)

// Unit is a piece of work.
type Unit struct {
	Name string          `json:"name"` // of its value
	Spec json.RawMessage `json:"spec"` // what a Worker goes by
	Size int64           `json:"size"` // how much work it is, to compare with other units: the largest are handed out first
	// Key is what units have in common that one worker does faster than several, as it has their inputs already; "" if there
	// is nothing. One that nobody has had, such as half0/batch3, goes where that before its last slash was.
	Key string `json:"key"`
}

// Engine has units done.
type Engine interface {
	// Begin says what the units that follow are part of: a worker is made of it.
	Begin(ctx context.Context, job []byte) error
	// Machines is how many workers there are now, as far as is known.
	Machines() int
	// Do returns when the values of all units are in the store. Units do not depend on each other.
	Do(ctx context.Context, units []Unit) error
}

// Worker does one unit at a time.
type Worker interface {
	// Do puts the unit's value into the store and returns its digest. What it puts there besides has names that begin with the unit's.
	Do(ctx context.Context, u Unit) (digest string, err error)
	// Close lets go of everything that the worker keeps between units.
	Close() error
}

// Factory makes a worker for a job.
type Factory func(ctx context.Context, job []byte) (Worker, error)

// DifferenceError says that a unit has had two results: one of the machines that made them is broken, or runs another program.
type DifferenceError struct {
	Unit          string
	First, Second string // workers
}

func (e *DifferenceError) Error() string {
	return fmt.Sprintf("%s: %s and %s have made different values of it: a broken machine, or a bug", e.Unit, e.First, e.Second)
}

// Missing returns the units whose values are not in the store, the largest first.
func Missing(values store.Shared, units []Unit) ([]Unit, error) {
	var missing []Unit
	for _, u := range units {
		r, err := values.Open(u.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, u)
		case err != nil:
			return nil, err
		default:
			r.Close()
		}
	}
	slices.SortStableFunc(missing, func(a, b Unit) int { return cmp.Compare(b.Size, a.Size) })
	return missing, nil
}

// Places says which worker is to do the units of a key. The zero value is ready.
type Places struct{ at map[string]string }

// Note says that a worker has done a unit of a key, which is to stay there unless it has a place already.
func (p *Places) Note(key, worker string) {
	if p.at == nil {
		p.at = map[string]string{}
	}
	if _, ok := p.at[key]; !ok && key != "" {
		p.at[key] = worker
	}
}

// home is where a key is, or that which it is a part of; "" if nowhere.
func (p *Places) home(key string) string {
	for {
		if w, ok := p.at[key]; ok {
			return w
		}
		slash := strings.LastIndexByte(key, '/')
		if slash < 0 {
			return ""
		}
		key = key[:slash]
	}
}

// Assign returns for each unit the name of the worker that is to do it, "" where any may: units without a key. A key stays
// where it is while its worker is among those alive and has no more work of the keys, by the units' sizes, than its share,
// or where no other has less.
func (p *Places) Assign(units []Unit, alive []string) []string {
	if p.at == nil {
		p.at = map[string]string{}
	}
	to := make([]string, len(units))
	if len(alive) == 0 {
		return to
	}
	var keys []string
	size := map[string]int64{}
	var total int64
	for _, u := range units {
		if u.Key == "" {
			continue
		}
		if !slices.Contains(keys, u.Key) {
			keys = append(keys, u.Key)
		}
		size[u.Key] += u.Size
		total += u.Size
	}
	slices.SortStableFunc(keys, func(a, b string) int { return cmp.Compare(size[b], size[a]) })
	machines := int64(len(alive))
	load := map[string]int64{}
	var homeless []string
	for _, k := range keys {
		if w := p.home(k); slices.Contains(alive, w) && (load[w]+size[k])*machines <= total {
			p.at[k] = w
			load[w] += size[k]
		} else {
			homeless = append(homeless, k)
		}
	}
	for _, k := range homeless {
		w := slices.MinFunc(alive, func(a, b string) int { return cmp.Compare(load[a], load[b]) })
		if at := p.home(k); slices.Contains(alive, at) && load[at] == load[w] {
			w = at
		}
		p.at[k] = w
		load[w] += size[k]
	}
	for i, u := range units {
		if u.Key != "" {
			to[i] = p.at[u.Key]
		}
	}
	return to
}

// Local is an Engine of workers in this process: what others are held to.
type Local struct {
	Values  store.Shared
	Make    Factory
	Workers int // at least 1

	places  Places
	workers []Worker
}

// Begin implements Engine.
func (l *Local) Begin(ctx context.Context, job []byte) error {
	if err := l.Close(); err != nil {
		return err
	}
	for range max(1, l.Workers) {
		w, err := l.Make(ctx, job)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		l.workers = append(l.workers, w)
	}
	return nil
}

// Machines implements Engine.
func (l *Local) Machines() int { return len(l.workers) }

// Do implements Engine.
func (l *Local) Do(ctx context.Context, units []Unit) error {
	missing, err := Missing(l.Values, units)
	if err != nil {
		return err
	}
	names := make([]string, len(l.workers))
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	to := l.places.Assign(missing, names)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // guards what follows
	taken := make([]bool, len(missing))
	next := func(worker string) int {
		mu.Lock()
		defer mu.Unlock()
		for i := range missing {
			if !taken[i] && (to[i] == "" || to[i] == worker) {
				taken[i] = true
				return i
			}
		}
		return -1
	}
	var wg sync.WaitGroup
	for w, worker := range l.workers {
		wg.Go(func() {
			for i := next(names[w]); i >= 0 && ctx.Err() == nil; i = next(names[w]) {
				if _, err := worker.Do(ctx, missing[i]); err != nil {
					cancel(fmt.Errorf("%s: %w", missing[i].Name, err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Close ends the workers.
func (l *Local) Close() error {
	var err error
	for _, w := range l.workers {
		err = errors.Join(err, w.Close())
	}
	l.workers = nil
	return err
}
