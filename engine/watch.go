package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/llmq/llmq/store"
)

// watchEvery is how often a store is asked which values have come.
const watchEvery = 2 * time.Second

// DoWatched has units done, and tells see of those whose values have come: first of those that were there before, if only that
// there are none, and of all by the end. An error of see, or of the store, ends the units that are under way.
func DoWatched(ctx context.Context, e Engine, values store.Store, units []Unit, see func(done []Unit) error) error {
	w := watcher{values: values, left: slices.Clone(units), see: see}
	if err := w.look(); err != nil {
		return err
	}
	watched, end := context.WithCancel(ctx)
	defer end()
	work, giveUp := context.WithCancel(ctx)
	defer giveUp()
	ended := make(chan error, 1)
	go func() {
		err := w.watch(watched)
		if err != nil {
			giveUp()
		}
		ended <- err
	}()
	err := e.Do(work, units)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		err = nil // Do says that it was given up, ended says why
	}
	end()
	return errors.Join(err, <-ended)
}

type watcher struct {
	values store.Store
	left   []Unit
	see    func(done []Unit) error
	looked bool
}

// watch looks until ctx ends, and once more then.
func (w *watcher) watch(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return w.look()
		case <-tick.C:
			if err := w.look(); err != nil {
				return err
			}
		}
	}
}

func (w *watcher) look() error {
	names, err := w.values.Names()
	if err != nil {
		return err
	}
	var done []Unit
	w.left = slices.DeleteFunc(w.left, func(u Unit) bool {
		_, there := slices.BinarySearch(names, u.Name)
		if there {
			done = append(done, u)
		}
		return there
	})
	if w.looked && len(done) == 0 {
		return nil
	}
	w.looked = true
	return w.see(done)
}
