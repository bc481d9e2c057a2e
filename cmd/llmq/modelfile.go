package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/pipeline"
)

// ollamaParameters are Ollama's names of what a GGUF's metadata say of sampling (github.com/ollama/ollama, docs/modelfile.md).
var ollamaParameters = []struct{ key, name string }{
	{"general.sampling.temp", "temperature"},
	{"general.sampling.top_k", "top_k"},
	{"general.sampling.top_p", "top_p"},
	{"general.sampling.min_p", "min_p"},
	{"general.sampling.penalty_repeat", "repeat_penalty"},
}

// modelfile is what `ollama create NAME -f MODELFILE` takes: the file, and how its authors sample. from is its path, relative to
// the Modelfile's folder.
func modelfile(from string, md gguf.Metadata) string {
	var b strings.Builder
	if filepath.IsAbs(from) {
		fmt.Fprintf(&b, "FROM %s\n", filepath.ToSlash(from))
	} else {
		fmt.Fprintf(&b, "FROM ./%s\n", filepath.ToSlash(from))
	}
	for _, p := range ollamaParameters {
		if v, ok := md.Get(p.key); ok {
			fmt.Fprintf(&b, "PARAMETER %s %v\n", p.name, v)
		}
	}
	return b.String()
}

// checkModelfile says what is wrong with --modelfile before anything is computed.
func (o *outputOptions) checkModelfile(a *app) error {
	switch {
	case o.Modelfile == "":
		return nil
	case o.PartBytes != 0:
		return usagef("--modelfile: Ollama takes a model of one file: give no --split-max-size")
	case samePath(o.Output, o.Modelfile):
		return usagef("--modelfile %s: is the output too", o.Modelfile)
	}
	return a.checkOutput(o.Modelfile, o.Force, o.inputs()...)
}

// samePath says whether two outputs would be one file, whether it is there yet or not.
func samePath(a, b string) bool {
	if atomicfile.Same(a, b) {
		return true
	}
	for _, p := range []*string{&a, &b} {
		target, err := atomicfile.Resolve(*p)
		if err != nil {
			return false // whoever opens it will say
		}
		folder, err := filepath.EvalSymlinks(filepath.Dir(target))
		if err != nil {
			return false
		}
		if *p, err = filepath.Abs(filepath.Join(folder, filepath.Base(target))); err != nil {
			return false
		}
	}
	return a == b
}

// writeModelfile writes it beside what a run has written.
func (o *outputOptions) writeModelfile(rep *pipeline.Report) error {
	if o.Modelfile == "" || rep.Output == "" {
		return nil
	}
	folder, err := filepath.Abs(filepath.Dir(o.Modelfile))
	if err != nil {
		return err
	}
	from, err := filepath.Abs(rep.Output)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(folder, from); err == nil {
		from = rel
	}
	return writeFile(o.Modelfile, []byte(modelfile(from, rep.Plan.Metadata)), o.Force)
}
