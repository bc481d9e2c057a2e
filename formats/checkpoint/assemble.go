package checkpoint

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
)

// assembly makes logical tensors of stored ones.
type assembly struct {
	parts    []*part // in the order of the files
	byName   map[string]*part
	quant    quantization
	tensors  []*logical
	warnings []string
	leftOut  []string // scales of activations
	buffers  []string // what is no weight
	packed   int      // logical tensors that are not plain
}

func newAssembly(dir string, parts []*part, raw json.RawMessage) (*assembly, error) {
	a := &assembly{parts: parts, byName: make(map[string]*part, len(parts))}
	for _, p := range parts {
		a.byName[p.name] = p
	}
	var err error
	a.quant, err = readQuantization(dir, raw, allFloats(parts))
	return a, err
}

// allFloats says whether all parts are floats as they are, so that no quantizer has made any of them.
func allFloats(parts []*part) bool {
	return !slices.ContainsFunc(parts, func(p *part) bool { return p.plainType() == nil && p.dtype != safetensors.F64 })
}

// run gathers packed tensors first; what no format claims must be plain.
func (a *assembly) run() error {
	found := make(map[*part]*logical) // by the part that holds the codes, so that the files' order stays
	for _, p := range a.parts {
		t, err := a.recognise(p)
		if err != nil {
			return err
		}
		if t != nil {
			if p.m != nil && p.m.Lazy() { // what decodes it takes all of its parts to be there
				return unsupportedf("%s: tensor %q is quantized: only plain floats can be fetched when they are needed", p.file, t.Name)
			}
			if err := checkShape(t.Shape); err != nil {
				return p.errorf("%v", err)
			}
			found[p] = t
			a.packed++
		}
	}
	for _, p := range a.parts {
		t := found[p]
		if t == nil {
			var err error
			if t, err = a.plain(p); err != nil {
				return err
			}
		}
		if t != nil {
			a.tensors = append(a.tensors, t)
		}
	}
	a.note()
	return nil
}

// plain makes a logical tensor of a stored one that no format claims; nil if it is no weight.
func (a *assembly) plain(p *part) (*logical, error) {
	info := Info{Name: p.name, Shape: p.shape, File: p.file, Type: p.plainType()}
	switch {
	case p.claimed:
		return nil, nil
	case (a.quant.method != "" || a.packed > 0) && isActivationScale(p):
		a.leftOut = append(a.leftOut, p.name)
		return nil, nil
	case info.Type != nil:
		return &logical{info, newPlain(p)}, nil
	case p.dtype == safetensors.F64:
		info.Type = ggml.F32
		return &logical{info, double{newPlain(p)}}, nil
	case !strings.HasSuffix(p.name, ".weight") && !strings.HasPrefix(string(p.dtype), "F"):
		a.buffers = append(a.buffers, p.name)
		return nil, nil // position_ids, masks, num_batches_tracked
	}
	return nil, unsupportedf("%s: tensor %q: %s %d is stored in no format that is known: quantization_config's method is %q",
		p.file, p.name, p.dtype, p.shape, a.quant.method)
}

// isActivationScale tells a scale that belongs to no weight: of a linear's input or of the cache.
func isActivationScale(p *part) bool {
	_, last, ok := cutLast(p.name, ".")
	return ok && slices.Contains(activationScales, last) && (elements(p.shape) == 1 || last != "k_scale" && last != "v_scale")
}

var activationScales = []string{"k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "input_scale", "activation_scale",
	"input_global_scale", "output_scale", "qscale_act", "input_zero_point", "k_zero_point", "v_zero_point"}

// cutLast cuts s around the last sep.
func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// note writes what a user should know.
func (a *assembly) note() {
	if a.quant.method != "" && a.packed == 0 {
		a.warnings = append(a.warnings, "config.json has a quantization_config ("+a.quant.method+
			"), but all weights are plain floats: it is ignored")
	}
	if n := len(a.leftOut); n > 0 {
		a.warnings = append(a.warnings, plural(n, "scale")+" of activations and caches left out, such as "+a.leftOut[0])
	}
	if n := len(a.buffers); n > 0 {
		a.warnings = append(a.warnings, plural(n, "tensor")+" of integers or truth values left out, such as "+a.buffers[0])
	}
}
