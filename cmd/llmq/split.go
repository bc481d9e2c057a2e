package main

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/pipeline"
)

// partSize is a flag's value in llama.cpp's units, K, M and G of 1000, 1000² and 1000³ bytes: hosts limit files to sizes
// like 50 GB. KiB, MiB and GiB are powers of 1024.
type partSize int64

var partUnits = []struct {
	name string
	size float64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"G", 1e9}, {"M", 1e6}, {"K", 1e3}, {"", 1}}

func (p *partSize) Type() string   { return "size" }
func (p *partSize) String() string { return strconv.FormatInt(int64(*p), 10) }

func (p *partSize) Set(s string) error {
	number, unit := s, 1.0
	for _, u := range partUnits {
		rest, ok := strings.CutSuffix(s, u.name)
		if !ok && len(u.name) == 1 {
			rest, ok = strings.CutSuffix(s, u.name+"B")
		}
		if ok {
			number, unit = strings.TrimSpace(rest), u.size
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v*unit >= 1) || v*unit >= math.MaxInt64 {
		return fmt.Errorf("%q is not a size such as 500M, 50G or 40GiB", s)
	}
	*p = partSize(v * unit)
	return nil
}

var partName = regexp.MustCompile(`-\d{5}-of-\d{5}\.gguf$`)

// checkParts is checkOutput for the files of a plan. How many parts there are may change once more, so parts that are named
// as those of the input are refused whatever their number.
func (o *outputOptions) checkParts(a *app, src pipeline.Source, plan *pipeline.Plan) error {
	stem := strings.TrimSuffix(filepath.Base(o.Output), ".gguf")
	if f, ok := src.(interface{ Paths() []string }); ok {
		for _, in := range f.Paths() {
			switch name := filepath.Base(in); {
			case atomicfile.Same(in, o.Output):
				return fmt.Errorf("%s: the output is part of the input", o.Output)
			case o.PartBytes > 0 && partName.ReplaceAllString(name, "") == stem && name != stem &&
				atomicfile.Same(filepath.Dir(in), filepath.Dir(o.Output)):
				return fmt.Errorf("%s: the parts of the input have the names of its parts", o.Output)
			}
		}
	}
	if o.PartBytes == 0 {
		return nil
	}
	for _, path := range plan.File.Paths(o.Output) {
		if err := a.checkOutput(path, o.Force, o.inputs()...); err != nil {
			return err
		}
	}
	return nil
}

// requantized says how many tensors of which types were quantized already: "28 tensors from Q8_0, 1 from Q6_K".
func requantized(rep *pipeline.Report) string {
	var types []string
	count := map[string]int{}
	for i := range rep.Tensors {
		if from := rep.Tensors[i].RequantizedFrom; from != "" {
			if count[from]++; count[from] == 1 {
				types = append(types, from)
			}
		}
	}
	for i, from := range types {
		noun := ""
		if i == 0 {
			noun = "tensors "
		}
		types[i] = fmt.Sprintf("%d %sfrom %s", count[from], noun, from)
	}
	if len(types) == 0 {
		return ""
	}
	return strings.Join(types, ", ") + "; the errors above are to these, not to the original"
}
