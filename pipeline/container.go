package pipeline

import (
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
)

// Container is a form that a run's output has in the place of a GGUF file, such as a checkpoint of quantized weights. It has types
// of its own for linears; all other tensors stay as the checkpoint has them, but for vectors that a transform scales.
type Container interface {
	Name() string
	// Type is what a linear becomes; nil: it stays as it is.
	Type(info *ggml.Info) *ggml.Type
	// Plan lays the output out. changed are the names of vectors that do not stay as they are: their rows are taken too. It refuses
	// a model that cannot be brought into the form.
	Plan(tensors []ggml.Info, changed []string) (Form, error)
}

// Form is a planned output of a Container.
type Form interface {
	Size() int64   // in bytes
	Memory() int64 // that its Output takes, at most
	Create(path string, overwrite bool) (Output, error)
}

// Output is where the rows of the planned tensors go, in any order and from several goroutines; a *gguf.Writer is one. It is in its
// place, whole, when Close returns without an error, and otherwise leaves nothing behind.
type Output interface {
	WriteRows(name string, row int, data []byte) error
	SetMeta(key string, value any) error
	Paths() []string
	Close() error
	Abort()
}

// Size is the size of the output in bytes.
func (p *Plan) Size() int64 {
	if p.form != nil {
		return p.form.Size()
	}
	return p.File.Size()
}

// Paths are the names of the output's files, or of its folder, where path is the one that was asked for.
func (p *Plan) Paths(path string) []string {
	if p.form != nil {
		return []string{path}
	}
	return p.File.Paths(path)
}

// createFile starts a GGUF file; partial is that of gguf.Options.
func (p *Plan) createFile(path, partial string, overwrite bool) (*gguf.Writer, error) {
	return gguf.Create(path, p.Metadata, p.infos(), gguf.Options{Overwrite: overwrite, PartBytes: p.Recipe.PartBytes, Partial: partial})
}

// checkContainer refuses what a recipe says beside a container.
func (r *Recipe) checkContainer() error {
	if r.Container == nil {
		return nil
	}
	refuse := func(what string) error {
		return fmt.Errorf("%s: %s is for GGUF files", r.Container.Name(), what)
	}
	switch needs := r.Method.Needs(); {
	case r.BiasCorrection:
		return refuse("bias correction, which adds tensors,")
	case needs.Decides:
		return refuse("method " + r.Method.Name() + ", which gives linears types of their own,")
	case needs.Int8Inputs:
		return refuse("method " + r.Method.Name())
	case len(r.Rules) > 0 || r.Embedding != nil || r.Output != nil:
		return refuse("a tensor's own type")
	case r.PartBytes != 0:
		return refuse("a size of parts")
	case r.Requantize:
		return refuse("quantizing what is quantized already")
	}
	return nil
}

// planForm lays out the output of a plan with a container.
func (p *Plan) planForm() (err error) {
	r := &p.Recipe
	if r.Container == nil {
		return nil
	}
	var changed []string
	for i := range p.Tensors {
		t := &p.Tensors[i]
		switch {
		case len(r.transforms()) == 0:
		case t.Role == model.RoleLinear && t.Type.Grid == nil:
			return fmt.Errorf("tensor %q stays as it is in %s, as groups do not divide its %d columns: methods that scale channels would "+
				"change it", t.Name, r.Container.Name(), t.Cols())
		case t.Role == model.RoleVector && ggml.ParseName(t.Name).Layer >= 0:
			changed = append(changed, t.Name)
		}
	}
	p.form, err = r.Container.Plan(p.infos(), changed)
	return err
}

// contained is typeOf with a container.
func (r *Recipe) contained(info *ggml.Info, role model.Role) (t, wanted *ggml.Type, err error) {
	switch role {
	case model.RoleVector, model.RoleKept:
		return ggml.F32, ggml.F32, nil
	case model.RoleLinear:
		t := r.Container.Type(info)
		if t != nil {
			return t, t, nil
		}
		if r.NoFallback {
			return nil, nil, fmt.Errorf("tensor %q: %d columns are not a multiple of %s's groups", info.Name, info.Cols(), r.Type.Name)
		}
		return info.Type, r.Type, nil
	}
	return info.Type, info.Type, nil
}

// checkForm refuses what a run of a plan with a container cannot do.
func (p *Plan) checkForm(opt *Options) error {
	switch {
	case p.form == nil:
		return nil
	case opt.Validate.Tokens != nil || opt.Fallback != Fallback{}:
		return fmt.Errorf("%s has one type for all linears: none can fall back to q8_0", p.Recipe.Container.Name())
	case opt.Engine != nil:
		return undivided("an output in " + p.Recipe.Container.Name())
	}
	return nil
}
