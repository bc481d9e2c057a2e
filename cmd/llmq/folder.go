package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/formats/packed"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/pipeline"
)

// folderOptions say in which form the output is written: as a GGUF file, or as a checkpoint folder for servers.
type folderOptions struct {
	Format    string
	GroupSize int
	ZeroPoint bool
}

const (
	ggufFormat = "gguf"
	// defaultGroup is the group of llm-compressor's W4A16 and of GPTQModel.
	defaultGroup = 128
)

func (o *folderOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Format, "format", ggufFormat, "gguf, or a checkpoint `FORMAT` that servers read: compressed-tensors (--bits 4, or 8 for W8A8 with dynamic activations) or gptq (--bits 4); --output is a folder then")
	choose(f, "format", append([]string{ggufFormat}, hf.FolderFormats()...))
	f.IntVar(&o.GroupSize, "group-size", 0, "with --format compressed-tensors or gptq and 4 bits: how many columns share a scale, 32, 64 or 128 (default 128)")
	f.BoolVar(&o.ZeroPoint, "zero-point", false, "likewise: give each group a zero point too")
}

// folder says whether the output is a folder.
func (o *folderOptions) folder() bool { return o.Format != ggufFormat }

// onlyGGUF are flags that have no meaning for a folder.
var onlyGGUF = []string{"type", "tensor-type", "embedding-type", "output-type", "allow-requantize", "split-max-size", "modelfile", "max-size",
	"max-bpw", "int8-fallback", "max-ppl-increase", "bias-correction", "mtp", "low-disk", "listen", "engine", "machines"}

// checkFolder checks the options of a folder, and those that are for one.
func (o *quantizeOptions) checkFolder() error {
	if !o.folder() {
		if o.GroupSize != 0 || o.ZeroPoint {
			return usagef("--group-size and --zero-point are for --format %s: GGUF's types have their own", strings.Join(hf.FolderFormats(), " and "))
		}
		return nil
	}
	if _, ok := hf.ParseFolderFormat(o.Format); !ok {
		return usagef("--format %.40q: want %s or %s", o.Format, ggufFormat, strings.Join(hf.FolderFormats(), " or "))
	}
	for _, name := range onlyGGUF {
		f := o.cmd.Flags().Lookup(name) // of a recipe all have been given; rules print as nothing
		if f != nil && (f.Value.String() != f.DefValue || name == "tensor-type" && len(o.Rules.rules) > 0) {
			return usagef("--%s is for GGUF files, not for --format %s", name, o.Format)
		}
	}
	if needs := o.Method.m.Needs(); needs.Decides || needs.Int8Inputs {
		return usagef("--method %s is for GGUF files, not for --format %s", o.Method.m.Name(), o.Format)
	}
	_, err := o.scheme()
	return err
}

// scheme is what linears become in a folder.
func (o *quantizeOptions) scheme() (packed.Scheme, error) {
	s := packed.Scheme{Bits: int(o.Bits), Group: o.GroupSize, ZeroPoint: o.ZeroPoint}
	if o.Bits == 0 {
		s.Bits = defaultBits
	}
	if s.Bits == 4 && s.Group == 0 {
		s.Group = defaultGroup
	}
	if err := s.Check(); err != nil || float64(s.Bits) != o.Bits && o.Bits != 0 {
		if err == nil {
			err = fmt.Errorf("%g bits: 4 and 8 are possible", o.Bits)
		}
		return s, usagef("--format %s: %w", o.Format, err)
	}
	if o.Format == hf.GPTQ.String() && s.Bits != 4 {
		return s, usagef("--format %s has 4 bits; 8, with activations of 8 bits, are for %s", o.Format, hf.CompressedTensors)
	}
	return s, nil
}

// container is the form of the output for a checkpoint.
func (o *quantizeOptions) container(src pipeline.Source) (pipeline.Container, error) {
	c, ok := src.(*hf.Checkpoint)
	if lazy, is := src.(*lazySource); is {
		c, ok = lazy.Checkpoint, true
	}
	if !ok {
		return nil, fmt.Errorf("%s: --format %s is for checkpoint folders: a GGUF file lacks the names and files that the output has", src.Name(), o.Format)
	}
	scheme, err := o.scheme()
	if err != nil {
		return nil, err
	}
	format, _ := hf.ParseFolderFormat(o.Format)
	f, err := c.Folder(format, scheme)
	if err != nil {
		return nil, err
	}
	return container{f}, nil
}

// container is a folder as package pipeline knows it.
type container struct{ *hf.Folder }

func (c container) Plan(tensors []ggml.Info, changed []string) (pipeline.Form, error) {
	p, err := c.Folder.Plan(tensors, changed)
	if err != nil {
		return nil, err
	}
	return form{p}, nil
}

type form struct{ *hf.FolderPlan }

func (f form) Create(path string, overwrite bool) (pipeline.Output, error) {
	w, err := f.FolderPlan.Create(path, overwrite)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// checkOutputFolder is checkOutput for a folder.
func (a *app) checkOutputFolder(output string, force bool, reads ...reading) error {
	for _, r := range reads {
		if r.path != "" && within(r.path, output) {
			return fmt.Errorf("%s: %s lies in the output, which would replace it", output, r.what)
		}
		if info, err := os.Stat(r.path); err == nil && info.IsDir() && within(output, r.path) {
			return fmt.Errorf("%s: the output lies in %s", output, r.what)
		}
	}
	if from, err := atomicfile.Recover(output); err != nil {
		return fmt.Errorf("%s: what a killed run was about to replace: %w", output, err)
	} else if from != "" {
		a.warn("brought %s back from %s, where a killed run that was about to replace it had left it", output, from)
	}
	if err := atomicfile.CheckFolder(output, hf.Quantized, force); errors.Is(err, fs.ErrExist) {
		return existsError(output)
	} else if err != nil {
		return err
	}
	for _, l := range atomicfile.Sweep(filepath.Dir(filepath.Clean(output))) {
		a.warn("removed %s, %s that a killed run has left", l.Path, formatBytes(l.Bytes))
	}
	return nil
}

// within says whether path is folder, or lies in it, links followed.
func within(path, folder string) bool {
	real := func(p string) string {
		if r, err := filepath.EvalSymlinks(p); err == nil {
			p = r
		}
		p, _ = filepath.Abs(p)
		return p
	}
	rel, err := filepath.Rel(real(folder), real(path))
	return err == nil && filepath.IsLocal(rel)
}
