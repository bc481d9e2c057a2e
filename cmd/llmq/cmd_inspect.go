package main

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/pipeline"
)

type inspectOptions struct {
	Path string
	JSON bool
}

func (o *inspectOptions) AddFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.JSON, "json", false, "print one JSON object, with arrays in full")
}

func (a *app) inspectCommand() *cobra.Command {
	var opts inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect FILE|FOLDER",
		Short: "Show a model's metadata and tensors",
		Long: `Shows the metadata and tensors of a GGUF file, or of a checkpoint folder as convert would write it: with GGUF's keys,
names and order of rows, but the types that are stored. Shapes are out×in. No weights are read.`,
		Example: `  llmq inspect qwen3-8b-q4_k.gguf
  llmq inspect Qwen3-8B --json`,
		Args: exactArgs("FILE|FOLDER"),
		RunE: func(_ *cobra.Command, args []string) error {
			opts.Path = args[0]
			return a.runInspect(opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

// typeTotal sums the tensors of one type.
type typeTotal struct {
	Type    string `json:"type"`
	Tensors int    `json:"tensors"`
	Weights int64  `json:"weights"`
	Bytes   int64  `json:"bytes"`
}

func (a *app) runInspect(opts inspectOptions) error {
	src, err := a.openSource(opts.Path, "")
	if err != nil {
		return err
	}
	defer src.Close()
	types := []typeTotal{}
	var all typeTotal
	index := map[*ggml.Type]int{}
	tensors := src.Tensors()
	for i := range tensors {
		t := &tensors[i]
		k, ok := index[t.Type]
		if !ok {
			k = len(types)
			index[t.Type] = k
			types = append(types, typeTotal{Type: t.Type.Name})
		}
		for _, total := range []*typeTotal{&types[k], &all} {
			total.Tensors++
			total.Weights += int64(t.Elements())
			total.Bytes += t.Bytes()
		}
	}
	bpw := 8 * float64(all.Bytes) / float64(max(all.Weights, 1))
	if opts.JSON {
		return a.inspectJSON(src, types, all, bpw)
	}
	t := newTable(a.stdout)
	for _, kv := range src.Metadata() {
		t.row(plain(kv.Key), "%s", abbreviate(kv.Value))
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout)
	for i := range tensors {
		t.row(plain(tensors[i].Name), "%s\t%s\t%d bytes", tensors[i].Type.Name, shapeString(tensors[i].Shape), tensors[i].Bytes())
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout)
	for _, total := range types {
		t.row(total.Type, "%d tensors\t%d weights\t%s", total.Tensors, total.Weights, formatBytes(total.Bytes))
	}
	t.row("all", "%d tensors\t%d weights\t%s\t%.3f bits per weight", all.Tensors, all.Weights, formatBytes(all.Bytes), bpw)
	return t.flush()
}

func (a *app) inspectJSON(src pipeline.Source, types []typeTotal, all typeTotal, bpw float64) error {
	type tensorJSON struct {
		Name  string `json:"name"`
		Type  string `json:"type"`
		Shape []int  `json:"shape"`
		Bytes int64  `json:"bytes"`
	}
	tensors := []tensorJSON{}
	for _, t := range src.Tensors() {
		tensors = append(tensors, tensorJSON{t.Name, t.Type.Name, t.Shape, t.Bytes()})
	}
	metadata := map[string]any{}
	for _, kv := range src.Metadata() {
		metadata[kv.Key] = jsonValue(kv.Value)
	}
	format := "checkpoint"
	if _, ok := src.(*gguf.File); ok {
		format = "gguf"
	}
	return a.printJSON(struct {
		Path          string         `json:"path"`
		Format        string         `json:"format"`
		Weights       int64          `json:"weights"`
		Bytes         int64          `json:"bytes"`
		BitsPerWeight float64        `json:"bits_per_weight"`
		Types         []typeTotal    `json:"types"`
		Metadata      map[string]any `json:"metadata"`
		Tensors       []tensorJSON   `json:"tensors"`
	}{src.Name(), format, all.Weights, all.Bytes, bpw, types, metadata, tensors})
}

// jsonValue makes a metadata value one that JSON can hold: floats that are not finite become strings.
func jsonValue(v any) any {
	switch v := v.(type) {
	case float32:
		return jsonFloat(float64(v), v)
	case float64:
		return jsonFloat(v, v)
	case []float32:
		out := make([]any, len(v))
		for i, f := range v {
			out[i] = jsonFloat(float64(f), f)
		}
		return out
	case []float64:
		out := make([]any, len(v))
		for i, f := range v {
			out[i] = jsonFloat(f, f)
		}
		return out
	case []uint8: // which encoding/json would print as base64
		out := make([]int, len(v))
		for i, b := range v {
			out[i] = int(b)
		}
		return out
	}
	return v
}

func jsonFloat(f float64, v any) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return strconv.FormatFloat(f, 'g', -1, 64)
	}
	return v
}

const (
	shownElements = 4  // of an array
	shownRunes    = 64 // of a string
)

// abbreviate prints a metadata value on one line.
func abbreviate(v any) string {
	if s, ok := v.(string); ok {
		return quote(s)
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Slice {
		return fmt.Sprint(v)
	}
	n := min(rv.Len(), shownElements)
	parts := make([]string, n, n+1)
	for i := range n {
		parts[i] = abbreviate(rv.Index(i).Interface())
	}
	if rv.Len() > n {
		parts = append(parts, "…")
	}
	return fmt.Sprintf("[%d] %s", rv.Len(), strings.Join(parts, ", "))
}

func quote(s string) string {
	if r := []rune(s); len(r) > shownRunes {
		return fmt.Sprintf("%s… (%d bytes)", strconv.Quote(string(r[:shownRunes])), len(s))
	}
	return strconv.Quote(s)
}

// plain returns a name as it is, or quoted if a terminal might take a part of it for more than text.
func plain(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }) {
		return quote(name)
	}
	return name
}

// shapeString is "out×in".
func shapeString(shape []int) string {
	parts := make([]string, len(shape))
	for i, n := range shape {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, "×")
}
