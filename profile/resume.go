package profile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/store"
)

// keptLayer is what a layer adds to a profile.
type keptLayer struct {
	Inputs  []Input      `json:"inputs"`
	Linears []keptLinear `json:"linears"`
	// Importance, Outliers and Shares are by input.
	Importance map[string][]float32          `json:"importance"`
	Outliers   map[string]int8outlier.Counts `json:"outliers"`
	Shares     map[string]string             `json:"shares"`
	Seconds    float64                       `json:"seconds"`
}

// keptLinear is a Linear with what its JSON leaves out.
type keptLinear struct {
	Linear
	Tensor string `json:"tensor"`
	Expert int    `json:"expert"`
	Tokens int    `json:"tokens"`
}

func layerName(i int) string  { return fmt.Sprintf("profile-layer%04d", i) }
func statesName(i int) string { return fmt.Sprintf("profile-states%04d", i) }

// resume takes the layers that are in the work folder into the profile, and the hidden states behind them into s, and returns
// the layer that is next.
func (r *run) resume(s *states.Store) (next int, err error) {
	if r.opt.Work == nil {
		return 0, nil
	}
	var layers []keptLayer
	for range r.m.Layers() {
		var l keptLayer
		ok, err := r.recall(layerName(len(layers)), func(f *json.Decoder) error { return f.Decode(&l) })
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		layers = append(layers, l)
	}
	for next = len(layers); next > 0; next-- {
		ok, err := r.recallStates(s, next)
		if err != nil {
			return 0, err
		}
		if ok || next == r.m.Layers() { // behind the last layer there is nothing to do
			break
		}
	}
	for _, l := range layers[:next] {
		r.p.Inputs = append(r.p.Inputs, l.Inputs...)
		for _, lin := range l.Linears {
			lin.tensor, lin.expert, lin.tokens = lin.Tensor, lin.Expert, lin.Tokens
			r.p.Linears = append(r.p.Linears, lin.Linear)
		}
		for _, in := range l.Inputs {
			r.importance[in.Name] = l.Importance[in.Name]
			if n, seen := l.Outliers[in.Name]; seen {
				r.outlying.Restore(in.Name, l.Shares[in.Name], n)
			}
		}
		r.standing.LayerSeconds = append(r.standing.LayerSeconds, l.Seconds)
	}
	return next, r.opt.Work.Note(&r.standing)
}

// keep has layer i done, and keeps what comes of it.
func (r *run) keep(s *states.Store, i int, do func() error) error {
	work := r.opt.Work
	if work == nil {
		return do()
	}
	start, inputs, linears := time.Now(), len(r.p.Inputs), len(r.p.Linears)
	if err := do(); err != nil {
		return err
	}
	l := keptLayer{Inputs: r.p.Inputs[inputs:], Importance: map[string][]float32{}, Outliers: map[string]int8outlier.Counts{},
		Shares: map[string]string{}, Seconds: time.Since(start).Seconds()}
	for _, lin := range r.p.Linears[linears:] {
		l.Linears = append(l.Linears, keptLinear{lin, lin.tensor, lin.expert, lin.tokens})
	}
	for _, in := range l.Inputs {
		l.Importance[in.Name] = r.importance[in.Name]
		if in.Tokens > 0 {
			l.Shares[in.Name], l.Outliers[in.Name] = r.outlying.Counts(in.Name)
		}
	}
	w, err := work.Create(layerName(i))
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	if err := json.NewEncoder(w).Encode(&l); err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		return err
	}
	if i+1 < r.m.Layers() {
		if err := r.keepStates(s, i+1); err != nil {
			return err
		}
	}
	if err := work.Delete(statesName(i)); err != nil {
		return err
	}
	r.standing.LayerSeconds = append(r.standing.LayerSeconds, l.Seconds)
	return work.Note(&r.standing)
}

func (r *run) keepStates(s *states.Store, i int) error {
	w, err := r.opt.Work.Create(statesName(i))
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	if err := s.Save(w); err != nil {
		return err
	}
	return w.Commit()
}

func (r *run) recallStates(s *states.Store, i int) (bool, error) {
	f, err := r.opt.Work.Open(statesName(i))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return true, s.Load(f)
}

// recall has a value read, and says whether it is there.
func (r *run) recall(name string, read func(d *json.Decoder) error) (bool, error) {
	f, err := r.opt.Work.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := read(json.NewDecoder(f)); err != nil {
		return false, fmt.Errorf("the work folder: %s: %w", name, err)
	}
	return true, nil
}

// finishWork leaves nothing in the folder but that the profile is done.
func (r *run) finishWork() error {
	work := r.opt.Work
	if work == nil {
		return nil
	}
	names, err := work.Names()
	if err == nil {
		err = work.Delete(names...)
	}
	r.standing.Phase = store.PhaseDone
	return errors.Join(err, work.Note(&r.standing))
}
