package pipeline

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/smoothquant"
)

// Recipe says what becomes of each tensor.
type Recipe struct {
	Method quant.Method
	// Type is the linears' block type.
	Type *ggml.Type
	// Rules override Type, Embedding and Output by tensor name; the first that matches wins.
	Rules []Rule
	// Embedding and Output are the types of token_embd.weight and output.weight; nil means Type if that is a
	// floating-point type, else F16. A tied embedding is one tensor, and goes by Embedding.
	Embedding, Output *ggml.Type
	// NoFallback makes it an error if a type's block does not divide a tensor's columns.
	NoFallback bool
	// Smooth, where not nil, is done before anything else.
	Smooth *smoothquant.Smoothing
	// BiasCorrection adds to each quantized linear's bias what its output has lost in the mean, and gives biases to
	// linears without one where the architecture's readers load them.
	BiasCorrection bool
	// OutputHessian says whether rows are rounded with regard to each other, by what errors of the outputs do to the predictions.
	OutputHessian OutputHessian
	// KeepCodes has linears that the checkpoint has in NVFP4, with factors beside them, and that become NVFP4, keep their codes.
	// It is for runs that calibrate nothing.
	KeepCodes bool
	// Requantize allows tensors that are quantized already, whose rounding errors stay; without it they are refused.
	Requantize bool
	// Container is the form of the output; nil: a GGUF file. Linears get what it has for their columns, and Type stands for that.
	Container Container
	// PartBytes splits the file where it has more bytes of tensors: see gguf.NewPlan. 0: it does not.
	PartBytes int64
}

// Calibrated says whether carrying out the recipe takes calibration text, and what for.
func (r *Recipe) Calibrated() (why string, ok bool) {
	switch {
	case r.Method.Needs().Stats:
		return r.Method.Name(), true
	case r.Smooth != nil:
		return "smoothing", true
	case r.BiasCorrection:
		return "bias correction", true
	}
	return "", false
}

// original says whether the recipe goes by what the original model has where the quantized one has its inputs.
func (r *Recipe) original() bool { return r.Method.Needs().Original || r.BiasCorrection }

// Rule gives the tensors whose GGUF name matches Pattern a type.
type Rule struct {
	Pattern *regexp.Regexp
	Type    *ggml.Type
}

// ParseRule reads "REGEX=TYPE".
func ParseRule(s string) (Rule, error) {
	i := strings.LastIndexByte(s, '=')
	if i <= 0 {
		return Rule{}, fmt.Errorf("%q: want REGEX=TYPE, for example 'ffn_down=q6_k'", s)
	}
	pattern, err := regexp.Compile(s[:i])
	if err != nil {
		return Rule{}, fmt.Errorf("%q: %w", s, err)
	}
	t, err := ggml.ByName(s[i+1:])
	if err != nil {
		return Rule{}, fmt.Errorf("%q: %w", s, err)
	}
	return Rule{pattern, t}, nil
}

// unusedRule says why rule i gives no tensor its type: it matches none, or rules before it take those that it matches, or they
// are in float32 whatever the recipe says.
func (r *Recipe) unusedRule(i int, src Source) error {
	rule := r.Rules[i]
	for _, before := range r.Rules[:i] {
		if before.Pattern.String() == rule.Pattern.String() {
			return fmt.Errorf("tensor type rule %q is given twice, for %s and for %s", rule.Pattern, before.Type.Name, rule.Type.Name)
		}
	}
	why := fmt.Sprintf("matches no tensor of %s", src.Name())
	for _, info := range src.Tensors() {
		matches := func(r Rule) bool { return r.Pattern.MatchString(info.Name) }
		if matches(rule) && slices.ContainsFunc(r.Rules[:i], matches) {
			why = fmt.Sprintf("has no effect: rules before it take the tensors that it matches, such as %s", info.Name)
			break
		} else if matches(rule) {
			why = fmt.Sprintf("has no effect: what it matches has to be F32, such as %s", info.Name)
		}
	}
	return fmt.Errorf("tensor type rule %q %s", rule.Pattern, why)
}

// bitTypes are the types that --bits stands for: the best of their size, as measured.
var bitTypes = map[float64]*ggml.Type{
	2: ggml.IQ2_S, 3: ggml.Q3_K, 4: ggml.Q4_K, 5: ggml.Q5_K, 6: ggml.Q6_K, 8: ggml.Q8_0,
}

// sizedTypes are those that bits with a fraction stand for, by the bits per weight that they take.
var sizedTypes = []*ggml.Type{ggml.IQ1_S, ggml.IQ1_M, ggml.IQ2_XXS, ggml.IQ2_XS, ggml.IQ2_S, ggml.Q2_K, ggml.IQ3_XXS, ggml.IQ3_S,
	ggml.IQ4_XS, ggml.Q4_K, ggml.Q5_K, ggml.Q6_K, ggml.Q8_0}

// sizeSlack is how far from a type's bits per weight those that stand for it are at most: 2.5 is IQ2_S, 2.5625.
const sizeSlack = 0.0651

// TypeForBits returns the block type of a number of bits: 2, 3, 4, 5, 6 or 8, or bits per weight with a fraction.
func TypeForBits(bits float64) (*ggml.Type, error) {
	if t := bitTypes[bits]; t != nil {
		return t, nil
	}
	var best *ggml.Type
	least := sizeSlack
	sizes := make([]string, len(sizedTypes))
	for i, t := range sizedTypes {
		size := 8 * float64(t.BlockBytes) / float64(t.BlockLen)
		if d := math.Abs(size - bits); d < least {
			best, least = t, d
		}
		sizes[i] = fmt.Sprintf("%.4g", size)
	}
	if best == nil || bits == math.Trunc(bits) {
		return nil, fmt.Errorf("%g: want 2, 3, 4, 5, 6 or 8, or about the bits per weight of a type: %s", bits, strings.Join(sizes, ", "))
	}
	return best, nil
}

const (
	embeddingName = model.EmbedName
	outputName    = model.HeadName
)

// unusedType is the type of a tensor that nothing calibrates, as the model's function does not depend on it: Q8_0, where
// linears are quantized.
func unusedType(info *ggml.Info, linears *ggml.Type) *ggml.Type {
	switch {
	case len(info.Shape) < 2:
		return ggml.F32
	case linears != nil && linears.Grid == nil:
		return linears
	}
	return ggml.Q8_0
}

// typeOf returns the type that a tensor gets, with the one that it replaces if that one's block does not divide its
// columns, and the index of the rule that chose it or −1.
func (r *Recipe) typeOf(info *ggml.Info, role model.Role) (t, wanted *ggml.Type, rule int, err error) {
	rule = -1
	if r.Container != nil {
		t, wanted, err = r.contained(info, role)
		return t, wanted, rule, err
	}
	t = r.Type
	switch role {
	case model.RoleVector, model.RoleKept:
		// Norms, biases, routers, convolutions: a negligible share, and GGUF readers require float32.
		return ggml.F32, ggml.F32, rule, nil
	case model.RoleUnused:
		if t = unusedType(info, r.Type); t == ggml.F32 {
			return t, t, rule, nil
		}
	case model.RoleEmbedding:
		t = r.outer(r.Embedding)
	case model.RoleHead:
		t = r.outer(r.Output)
	}
	for i := range r.Rules {
		if r.Rules[i].Pattern.MatchString(info.Name) {
			t, rule = r.Rules[i].Type, i
			break
		}
	}
	if t == nil {
		return nil, nil, rule, errors.New("the recipe has no type")
	}
	wanted = t
	if t = ggml.Substitute(wanted, info.Cols()); t != wanted && r.NoFallback {
		return nil, nil, rule, fmt.Errorf("tensor %q: %d columns are not a multiple of %s's block of %d",
			info.Name, info.Cols(), wanted.Name, wanted.BlockLen)
	}
	return t, wanted, rule, nil
}

// Resolved returns the recipe with the types of embedding and output that nil stands for.
func (r Recipe) Resolved() Recipe {
	r.Embedding, r.Output = r.outer(r.Embedding), r.outer(r.Output)
	return r
}

func (r *Recipe) outer(t *ggml.Type) *ggml.Type {
	switch {
	case t != nil:
		return t
	case r.Type != nil && r.Type.Grid == nil:
		return r.Type
	}
	return ggml.F16
}
