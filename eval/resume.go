package eval

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/llmq/llmq/store"
)

// Work is the folder of an evaluation that goes on where it was cut off: the hidden states of all its models before a layer
// are kept there. It belongs to one evaluation alone.
type Work interface {
	store.Store
	Note(s *store.Standing) error
}

const statesPrefix = "eval-states"

func statesName(layer int) string { return fmt.Sprintf("%s%04d", statesPrefix, layer) }

// resume takes the hidden states of the evaluation's models before the last layer that they are kept of, and returns it: 0 if
// there are none.
func resume(work Work, runs []*run, standing *store.Standing) (layer int, err error) {
	if work == nil {
		return 0, nil
	}
	for layer = standing.Layers; layer > 0; layer-- {
		ok, err := recallStates(work, runs, layer)
		if err != nil {
			return 0, err
		}
		if ok {
			break
		}
	}
	standing.LayerSeconds = make([]float64, layer) // how long those took is not kept
	return layer, work.Note(standing)
}

func recallStates(work Work, runs []*run, layer int) (bool, error) {
	r, err := work.Open(statesName(layer))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer r.Close()
	for _, run := range runs {
		if err := run.hidden.Load(r); err != nil {
			return false, fmt.Errorf("eval: %w", err)
		}
	}
	return true, nil
}

// keep keeps the hidden states before a layer, and no others.
func keep(work Work, runs []*run, layer int, took time.Duration, standing *store.Standing) error {
	if work == nil {
		return nil
	}
	w, err := work.Create(statesName(layer))
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	for _, run := range runs {
		if err := run.hidden.Save(w); err != nil {
			return fmt.Errorf("eval: %w", err)
		}
	}
	if err := w.Commit(); err != nil {
		return err
	}
	if err := work.Delete(statesName(layer - 1)); err != nil {
		return err
	}
	standing.LayerSeconds = append(standing.LayerSeconds, took.Seconds())
	return work.Note(standing)
}

// finish leaves nothing of the evaluation in the folder but that it is done.
func finish(work Work, standing *store.Standing) error {
	if work == nil {
		return nil
	}
	names, err := work.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, unitsPrefix) {
			err = errors.Join(err, work.Delete(name))
		}
	}
	standing.Phase = store.PhaseDone
	return errors.Join(err, work.Note(standing))
}
