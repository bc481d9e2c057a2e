// Package report turns what the other commands measured into one page for a person to look at: HTML that holds everything
// it shows, reads on a phone, and has the numbers behind every picture.
//
// The pictures are tables and SVG from html/template: a chart library would bring a megabyte of JavaScript into each page
// (go-echarts loads it from the network by default) to draw what a reader can neither select nor hear.
package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/profile"
)

// maxJSONBytes is beyond what any command prints.
const maxJSONBytes = 1 << 30

// Quantization is what quantize and convert print with --json.
type Quantization struct {
	*pipeline.Report
	PeakRSS int64 `json:"peak_rss_bytes"`
}

// Subject is the model that an evaluation is about.
type Subject struct {
	Model string `json:"model"` // path as given
	// Bytes is the size of a GGUF file, or of a checkpoint's tensors.
	Bytes         int64   `json:"bytes"`
	BitsPerWeight float64 `json:"bits_per_weight"`
	Base          string  `json:"base"` // path as given; "" without one
}

// Evaluation is what eval --text prints with --json.
type Evaluation struct {
	Subject
	Text        string `json:"text"` // path as given
	Name        string `json:"name,omitempty"`
	Activations string `json:"activations"` // as given; "" for the default
	*eval.Result
	PeakRSS int64 `json:"peak_rss_bytes"`
}

// TaskEvaluation is what eval --task prints with --json.
type TaskEvaluation struct {
	Subject
	Task string `json:"task"` // path as given
	*eval.TaskResult
	PeakRSS int64 `json:"peak_rss_bytes"`
}

// Model is what a GGUF file tells about itself.
type Model struct {
	Bytes    int64
	Metadata gguf.Metadata
	Tensors  []ggml.Info
}

// Input is a file to report on. One of its pointers is set.
type Input struct {
	Path         string
	Quantization *Quantization
	Evaluation   *Evaluation
	Task         *TaskEvaluation
	Profile      *profile.Profile
	Model        *Model
}

// ErrNotOurs is the error of a file that llmq did not write.
var ErrNotOurs = errors.New("not written by llmq")

// MetadataPrefix starts the metadata keys that llmq alone writes.
const MetadataPrefix = "llmq."

// Read reads a JSON file that quantize, convert, eval or profile wrote, or a GGUF file with llmq's metadata. Of a GGUF
// file only the header is read.
func Read(path string) (*Input, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	const want = "want a GGUF file, or what quantize --json, eval --json or profile wrote"
	if info.IsDir() {
		return nil, fmt.Errorf("%s: is a folder; %s", path, want)
	}
	if !info.Mode().IsRegular() { // a device may have no end, and opening a pipe could wait for ever
		return nil, fmt.Errorf("%s: not a regular file; %s", path, want)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err == nil && string(magic[:]) == "GGUF" {
		return readModel(path)
	}
	data, err := text.ReadFile(path, maxJSONBytes)
	if err != nil {
		return nil, err
	}
	in, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	in.Path = path
	return in, nil
}

func readModel(path string) (*Input, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := &Model{Bytes: f.Size(), Tensors: f.Tensors()}
	for _, kv := range f.Metadata() {
		if strings.HasPrefix(kv.Key, MetadataPrefix) {
			m.Metadata = append(m.Metadata, kv)
		}
	}
	if len(m.Metadata) == 0 {
		return nil, fmt.Errorf("%s: %w: a GGUF file without %s* metadata", path, ErrNotOurs, MetadataPrefix)
	}
	return &Input{Path: path, Model: m}, nil
}

// parse recognises an object by keys that only one command prints.
func parse(data []byte) (*Input, error) {
	var keys map[string]json.RawMessage
	if err := decode(data, &keys); err != nil {
		return nil, fmt.Errorf("%w: neither a GGUF file nor a JSON object: %w", ErrNotOurs, err)
	}
	has := func(names ...string) bool {
		for _, n := range names {
			if _, ok := keys[n]; !ok {
				return false
			}
		}
		return true
	}
	in := &Input{}
	var v any
	switch {
	case has("output", "tensors", "memory_bytes"):
		return nil, errors.New("the plan of a --dry-run, which measured nothing")
	case has("output", "tensors", "bits_per_weight"):
		in.Quantization = &Quantization{Report: &pipeline.Report{}}
		v = in.Quantization
	case has("model", "linears", "inputs", "checklist"):
		in.Profile = &profile.Profile{}
		v = in.Profile
	case has("model", "kind", "accuracy"):
		in.Task = &TaskEvaluation{TaskResult: &eval.TaskResult{}}
		v = in.Task
	case has("model", "perplexity", "tokens_scored"):
		in.Evaluation = &Evaluation{Result: &eval.Result{}}
		v = in.Evaluation
	case has("perplexity", "tokens_scored"), has("kind", "accuracy"):
		return nil, errors.New(`an evaluation without "model": written by an earlier llmq; evaluate again`)
	default:
		return nil, fmt.Errorf("%w: JSON, but not what quantize --json, eval --json or profile writes", ErrNotOurs)
	}
	if err := decode(data, v); err != nil {
		return nil, err
	}
	return in, in.check()
}

// decode reads one value and nothing after it. Errors give the offset.
func decode(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(v); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return fmt.Errorf("at byte %d: %w", syntax.Offset, err)
		}
		return err
	}
	at := dec.InputOffset()
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("at byte %d: more than one value", at)
	}
	return nil
}

// check refuses values that a page cannot show.
func (in *Input) check() error {
	switch {
	case in.Quantization != nil:
		if len(in.Quantization.Tensors) == 0 {
			return errors.New("no tensors")
		}
		for i := range in.Quantization.Tensors {
			t := &in.Quantization.Tensors[i]
			if _, err := typeNamed(t.Type); err != nil {
				return fmt.Errorf("tensor %q: %w", t.Name, err)
			}
			if t.Bytes < 0 || t.RelativeError < 0 || t.WeightError < 0 {
				return fmt.Errorf("tensor %q: %d bytes, errors %g and %g: none can be negative", t.Name, t.Bytes,
					t.RelativeError, t.WeightError)
			}
		}
		for i := range in.Quantization.Ranges {
			g := &in.Quantization.Ranges[i]
			for _, s := range []*pipeline.Spread{&g.InputBefore, &g.InputAfter, &g.WeightsBefore, &g.WeightsAfter} {
				if !(s.HistogramRange > 0) || len(s.Histogram) == 0 {
					return fmt.Errorf("group %q: histogram of %d bins to %g", g.Group, len(s.Histogram), s.HistogramRange)
				}
				if err := checkCounts(s.Histogram); err != nil {
					return fmt.Errorf("group %q: %w", g.Group, err)
				}
			}
		}
	case in.Evaluation != nil:
		if e := in.Evaluation; e.Perplexity <= 0 || e.Bytes < 0 {
			return fmt.Errorf("perplexity %g of a model of %d bytes", e.Perplexity, e.Bytes)
		}
	case in.Task != nil:
		if in.Task.Accuracy == nil {
			return errors.New(`"accuracy" is null`)
		}
	case in.Profile != nil:
		for i := range in.Profile.Inputs {
			if err := checkDistribution(&in.Profile.Inputs[i].Distribution); err != nil {
				return fmt.Errorf("input %q: %w", in.Profile.Inputs[i].Name, err)
			}
		}
		for i := range in.Profile.Linears {
			if err := checkDistribution(&in.Profile.Linears[i].Weights); err != nil {
				return fmt.Errorf("linear %q: %w", in.Profile.Linears[i].Name, err)
			}
		}
	}
	return nil
}

func checkDistribution(d *profile.Distribution) error {
	if !(d.HistogramRange >= 0) {
		return fmt.Errorf("histogram to %g", d.HistogramRange)
	}
	return checkCounts(d.Histogram)
}

func checkCounts(histogram []int64) error {
	for i, n := range histogram {
		if n < 0 {
			return fmt.Errorf("histogram: bin %d has %d values", i, n)
		}
	}
	return nil
}
