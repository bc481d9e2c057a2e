package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/llmq/llmq/store"
)

// slow is an Engine whose units are done after a day.
type slow struct{ Engine }

func (slow) Do(ctx context.Context, _ []Unit) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(24 * time.Hour):
		return nil
	}
}

// damaged is a store that cannot be listed, once it has been.
type damaged struct {
	store.Store
	listed bool
}

var errDamaged = errors.New("damaged")

func (d *damaged) Names() ([]string, error) {
	if d.listed {
		return nil, errDamaged
	}
	d.listed = true
	return nil, nil
}

// TestDoWatchedFails: nobody waits for units of a run that cannot go on, and what is said of it is why.
func TestDoWatchedFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		units := []Unit{{Name: "a"}}
		start := time.Now()
		err := DoWatched(t.Context(), slow{}, &damaged{}, units, func([]Unit) error { return nil })
		if took := time.Since(start); err == nil || err.Error() != errDamaged.Error() || took > 2*watchEvery {
			t.Errorf("after %v: %v", took, err)
		}
		// Who is interrupted hears that.
		ctx, cancel := context.WithTimeout(t.Context(), watchEvery/2)
		defer cancel()
		if err := DoWatched(ctx, slow{}, &damaged{}, units, func([]Unit) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("interrupted: %v", err)
		}
	})
}
