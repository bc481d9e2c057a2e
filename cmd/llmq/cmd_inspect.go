package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
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
		Long: `Shows the metadata and tensors of a GGUF file of any architecture and types, all parts of a split one together; or of a
checkpoint folder as convert would write it: with GGUF's keys, names and order of rows, but the types that are stored.
Shapes are out×in. No weights are read. A type whose number ggml does not know is "type N", and its tensors' bytes are
those up to the next tensor.`,
		Example: `  llmq inspect qwen3-8b-q4_k.gguf
  llmq inspect Qwen3-8B --json`,
		Args: exactArgs("FILE|FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Path = args[0]
			return a.runInspect(cmd.Context(), opts)
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

func (a *app) runInspect(ctx context.Context, opts inspectOptions) error {
	l, format, err := a.list(ctx, opts.Path)
	if err != nil {
		return err
	}
	types := []typeTotal{}
	var all typeTotal
	index := map[string]int{}
	for _, t := range l.Tensors {
		k, ok := index[t.Type]
		if !ok {
			k = len(types)
			index[t.Type] = k
			types = append(types, typeTotal{Type: t.Type})
		}
		weights := int64(1)
		for _, n := range t.Shape {
			weights *= int64(n)
		}
		for _, total := range []*typeTotal{&types[k], &all} {
			total.Tensors++
			total.Weights += weights
			total.Bytes += t.Bytes
		}
	}
	bpw := 8 * float64(all.Bytes) / float64(max(all.Weights, 1))
	if opts.JSON {
		return a.inspectJSON(opts.Path, format, l, types, all, bpw)
	}
	t := newTable(a.stdout)
	for _, kv := range l.Metadata {
		t.row(plain(kv.Key), "%s", abbreviate(kv.Value))
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout)
	for _, tensor := range l.Tensors {
		t.row(plain(tensor.Name), "%s\t%s\t%d bytes", tensor.Type, shapeString(tensor.Shape), tensor.Bytes)
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
	if len(l.Paths) > 1 {
		t.row("files", "%d parts, the last is %s", len(l.Paths), plain(filepath.Base(l.Paths[len(l.Paths)-1])))
	}
	return t.flush()
}

// list lists what a GGUF file or a checkpoint folder holds.
func (a *app) list(ctx context.Context, path string) (l *gguf.Listing, format string, err error) {
	if info, err := os.Stat(path); err == nil && !info.IsDir() && !strings.HasSuffix(path, ".safetensors") {
		l, err := gguf.List(path)
		return l, "gguf", err
	}
	src, err := a.openHeaders(ctx, path, hf.Options{})
	if err != nil {
		return nil, "", err
	}
	defer src.Close()
	l = &gguf.Listing{Metadata: src.Metadata()}
	for _, t := range src.Tensors() {
		l.Tensors = append(l.Tensors, gguf.Listed{Name: t.Name, Type: t.Type.Name, Shape: t.Shape, Bytes: t.Bytes()})
	}
	return l, "checkpoint", nil
}

func (a *app) inspectJSON(path, format string, l *gguf.Listing, types []typeTotal, all typeTotal, bpw float64) error {
	type tensorJSON struct {
		Name  string `json:"name"`
		Type  string `json:"type"`
		Shape []int  `json:"shape"`
		Bytes int64  `json:"bytes"`
	}
	tensors := []tensorJSON{}
	for _, t := range l.Tensors {
		tensors = append(tensors, tensorJSON(t))
	}
	metadata := map[string]any{}
	for _, kv := range l.Metadata {
		metadata[kv.Key] = jsonValue(kv.Value)
	}
	parts := []string{}
	if len(l.Paths) > 1 {
		parts = l.Paths
	}
	return a.printJSON(struct {
		Path          string         `json:"path"`
		Format        string         `json:"format"`
		Parts         []string       `json:"parts"` // of a split file
		Weights       int64          `json:"weights"`
		Bytes         int64          `json:"bytes"`
		BitsPerWeight float64        `json:"bits_per_weight"`
		Types         []typeTotal    `json:"types"`
		Metadata      map[string]any `json:"metadata"`
		Tensors       []tensorJSON   `json:"tensors"`
	}{path, format, parts, all.Weights, all.Bytes, bpw, types, metadata, tensors})
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
