package arch

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/model"
)

// Family is one architecture.
type Family struct {
	Name string // general.architecture
	// Classes are the names in config.json's architectures that become this one.
	Classes []string
	// Takes, where not nil, decides for a class that several families have.
	Takes func(config *object.Object) bool
	// Unwindowed: llama.cpp attends to all tokens in this family's models, whatever window the metadata have.
	Unwindowed bool
	// Convert describes the GGUF file that a checkpoint becomes.
	Convert func(c *Conversion)
	// Spec reads a model's metadata. Failures are kept in k.
	Spec func(k *model.Keys) *model.Spec
}

var (
	byName  = map[string]*Family{}
	byClass = map[string][]*Family{}
)

// register adds a family; two of one name are a mistake in the program.
func register(f *Family) {
	if byName[f.Name] != nil {
		panic("arch: two families are called " + f.Name)
	}
	byName[f.Name] = f
	for _, class := range f.Classes {
		byClass[class] = append(byClass[class], f)
	}
}

// Names lists the values of general.architecture that Open accepts, sorted.
func Names() []string { return slices.Sorted(maps.Keys(byName)) }

// Classes lists the model classes that Convert accepts, sorted.
func Classes() []string { return slices.Sorted(maps.Keys(byClass)) }

// Open reads a model's hyperparameters and checks that the source's tensors are those of its architecture. It reads no
// weights but small ones outside the layers.
func Open(src model.Source) (*model.Model, error) {
	v, ok := src.Meta("general.architecture")
	if !ok {
		return nil, fmt.Errorf("model: %s: general.architecture: the key is missing", src.Name())
	}
	name, _ := v.(string)
	f := byName[name]
	if f == nil {
		return nil, fmt.Errorf("model: %s: general.architecture is %.64q, supported are %s",
			src.Name(), fmt.Sprint(v), strings.Join(Names(), ", "))
	}
	// llama.cpp's llama-gguf-split writes files that hold some of a model's tensors each.
	parts := model.NewKeys(src, "split")
	if n := parts.Int("count", 1, 0, math.MaxUint16); n > 1 {
		parts.Fail("count", "is %d: the file is one of so many parts of a model; join them first, as llama-gguf-split --merge does", n)
	}
	if err := parts.Err(); err != nil {
		return nil, err
	}
	k := model.NewKeys(src, name)
	spec := f.Spec(k)
	if err := k.Err(); err != nil {
		return nil, err
	}
	return model.New(src, spec)
}
