package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/quant"
)

// recipeKeys are the options of quantize that a recipe holds, by their flags' names and in the order in which they are
// printed: all that the output depends on besides the checkpoint.
var recipeKeys = []string{
	"method", "format", "bits", "group-size", "zero-point", "type", "embedding-type", "output-type", "tensor-type", "no-fallback", "smooth", "bias-correction",
	"damping", "act-order", "refine", "output-hessian", "int8-fallback", "max-size", "max-bpw", "max-ppl-increase", "pre", "mtp",
	"calib", "calib-tokens", "seq-len", "seed",
}

// overriddenBy lists flags that make up one's mind about what a recipe's key says, besides the key's own.
var overriddenBy = map[string][]string{
	"bits": {"type", "max-size", "max-bpw"},
	"type": {"bits", "max-size", "max-bpw"},
}

// autoRecipe is the recipe that is made for the checkpoint, by the method auto; a file of that name is ./auto.
const autoRecipe = "auto"

// loadRecipe sets the flags that a recipe file has values for and the command line has not.
func loadRecipe(path string, flags *pflag.FlagSet) error {
	content, err := text.ReadUTF8(path)
	if err != nil {
		return err
	}
	given := map[string]bool{} // on the command line
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	dec := yaml.NewDecoder(strings.NewReader(content))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if err == io.EOF {
			return fmt.Errorf("%s: no recipe in it", path)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := dec.Decode(&more); err != io.EOF {
		return fmt.Errorf("%s: more than one document", path)
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: want keys with values, as 'method: gptq'", path, root.Line)
	}
	lines := map[string]int{}
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		switch {
		case !slices.Contains(recipeKeys, key.Value):
			return fmt.Errorf("%s:%d: unknown key %q%s", path, key.Line, key.Value, didYouMean(key.Value, recipeKeys, ""))
		case lines[key.Value] > 0:
			return fmt.Errorf("%s:%d: %s is in line %d already", path, key.Line, key.Value, lines[key.Value])
		}
		lines[key.Value] = key.Line
		overridden := given[key.Value] || slices.ContainsFunc(overriddenBy[key.Value], func(f string) bool { return given[f] })
		if err := setFlag(flags.Lookup(key.Value), value, overridden); err != nil {
			return fmt.Errorf("%s:%w", path, err)
		}
	}
	return nil
}

// setFlag gives a flag a recipe's value or, of a repeatable flag, values. What the command line overrides is left alone,
// but has to have the right form. Errors begin with the line.
func setFlag(f *pflag.Flag, value *yaml.Node, overridden bool) error {
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	repeatable := f.Name == "calib" || f.Name == "tensor-type"
	values := []*yaml.Node{value}
	if repeatable && value.Kind == yaml.SequenceNode {
		values = value.Content
	}
	for _, v := range values {
		if v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
			want := "one value"
			if repeatable {
				want = "a value or a list of them"
			}
			return fmt.Errorf("%d: %s: want %s", v.Line, f.Name, want)
		}
		target := f
		if overridden {
			target = (&app{}).quantizeCommand().Flags().Lookup(f.Name) // as good a place to parse it
		}
		if err := target.Value.Set(v.Value); err != nil {
			if _, ok := errors.AsType[*strconv.NumError](err); ok {
				err = fmt.Errorf("%.40q is not %s", v.Value, valueKinds[f.Value.Type()])
			}
			return fmt.Errorf("%d: %s: %w", v.Line, f.Name, err)
		}
		target.Changed = true
	}
	return nil
}

// valueKinds says what flags of pflag's number types want.
var valueKinds = map[string]string{
	"bool": "true or false", "float64": "a number", "int": "a whole number that fits", "uint64": "a whole number from 0 that fits",
}

// printRecipe prints the options in force as a recipe, resolved: what they leave to a default is spelt out, but for what a
// budget decides on and a number of tokens that depends on the text.
func (a *app) printRecipe(o *quantizeOptions, r pipeline.Recipe) error {
	b, err := recipeYAML(o, r)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(b)
	return err
}

// recipeYAML is the options in force as a recipe file. o is what the flags of o.cmd set.
func recipeYAML(o *quantizeOptions, r pipeline.Recipe) ([]byte, error) {
	defer func(t, embedding, output typeValue) { o.Type, o.EmbeddingType, o.OutputType = t, embedding, output }(o.Type, o.EmbeddingType,
		o.OutputType)
	if !o.assigns() {
		r = r.Resolved()
		o.Type.t, o.EmbeddingType.t, o.OutputType.t = r.Type, r.Embedding, r.Output
	}
	m := &yaml.Node{Kind: yaml.MappingNode}
	for _, key := range recipeKeys {
		f := o.cmd.Flags().Lookup(key)
		value := &yaml.Node{Kind: yaml.ScalarNode, Value: f.Value.String()}
		switch key {
		case "bits": // the type says it
			if !o.folder() {
				continue
			}
			value.Value = strconv.Itoa(r.Type.Grid.Shape().Bits)
		case "format", "group-size", "zero-point":
			if value.Value == f.DefValue {
				continue
			}
		case "type", "embedding-type", "output-type", "pre", "max-ppl-increase":
			if key != "max-ppl-increase" {
				value.Tag = "!!str"
			}
			if value.Value == "" || o.folder() {
				continue
			}
		case "method":
			value.Tag = "!!str"
		case "calib-tokens":
			if o.CalibTokens == 0 {
				continue
			}
		case "calib":
			value = stringList(o.Calib)
		case "tensor-type":
			var rules []string
			for _, rule := range o.Rules.rules {
				rules = append(rules, rule.Pattern.String()+"="+rule.Type.Name)
			}
			value = stringList(rules)
		}
		m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	err := errors.Join(enc.Encode(m), enc.Close())
	return b.Bytes(), err
}

func stringList(list []string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	for _, s := range list {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s})
	}
	if len(list) == 0 {
		n.Style = yaml.FlowStyle // []
	}
	return n
}

// methodValue is a flag that names a method.
type methodValue struct{ m quant.Method }

func (v *methodValue) Type() string { return "METHOD" }
func (v *methodValue) String() string {
	if v.m == nil {
		return ""
	}
	return v.m.Name()
}

func (v *methodValue) Set(s string) error {
	m := pipeline.MethodByName(s)
	if m == nil {
		names := pipeline.MethodNames()
		return fmt.Errorf("unknown method %q%s; known: %s", s, didYouMean(s, names, ""), strings.Join(names, ", "))
	}
	v.m = m
	return nil
}

// typeNamed is ggml.ByName with the nearest name in the error.
func typeNamed(s string) (*ggml.Type, error) {
	if s == "" {
		return nil, errors.New("no type given")
	}
	t, err := ggml.ByName(s)
	if err != nil {
		var names []string
		for _, t := range ggml.Types {
			names = append(names, t.Name)
		}
		return nil, fmt.Errorf("%w%s", err, didYouMean(strings.ToUpper(s), names, ""))
	}
	return t, nil
}
