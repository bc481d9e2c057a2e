package report

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed page.html
var pageHTML string

//go:embed style.css
var styleCSS string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"style": func() template.CSS { return template.CSS(styleCSS) },
	"num":   num,
	"size":  formatBytes,
}).Parse(pageHTML))

// page is what the template shows.
type page struct {
	Sources  []source
	Sizes    []*sizes
	Tasks    []taskRow
	Runs     []*run
	Profiles []*profileView
}

// source is a file that the page is about.
type source struct{ Name, Kind string }

// Write writes a page about all inputs, whole.
//
// A GGUF file and the quantization that wrote it are shown as one, and an evaluation beside the file that it is about:
// they belong together if the files' names, without folders, and sizes in bytes are equal. Perplexities are drawn in one
// picture if they are of one text by one protocol.
func Write(w io.Writer, inputs []*Input) error {
	p, err := newPage(inputs)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	_, err = w.Write(b.Bytes())
	return err
}

func newPage(inputs []*Input) (*page, error) {
	p := &page{}
	var evaluations []*Evaluation
	for _, in := range inputs {
		kind := ""
		switch {
		case in.Quantization != nil:
			kind = "quantization"
			if err := p.run(in.Quantization.Output, in.Quantization.Bytes).addQuantization(in.Quantization); err != nil {
				return nil, fmt.Errorf("%s: %w", in.Path, err)
			}
		case in.Model != nil:
			kind = "GGUF file"
			if err := p.run(in.Path, in.Model.Bytes).addModel(in.Model); err != nil {
				return nil, fmt.Errorf("%s: %w", in.Path, err)
			}
		case in.Evaluation != nil:
			kind = "evaluation"
			evaluations = append(evaluations, in.Evaluation)
		case in.Task != nil:
			kind = "task"
			p.Tasks = append(p.Tasks, taskRows(in.Task)...)
		case in.Profile != nil:
			kind = "profile"
			p.Profiles = append(p.Profiles, newProfile(len(p.Profiles), in.Profile))
		}
		p.Sources = append(p.Sources, source{filepath.Base(in.Path), kind})
	}
	for _, e := range evaluations {
		p.addEvaluation(e)
	}
	for _, s := range p.Sizes {
		s.draw()
	}
	scale := newHeatScale()
	for _, r := range p.Runs {
		for i := range r.Tensors {
			if t := &r.Tensors[i]; t.quantizedLinear() {
				scale.add(t.Error)
			}
		}
	}
	for _, r := range p.Runs {
		r.finish(scale)
	}
	return p, nil
}

// run returns the run of the file of that name and size.
func (p *page) run(path string, bytes int64) *run {
	if r := p.find(path, bytes); r != nil {
		return r
	}
	r := &run{ID: fmt.Sprintf("run-%d", len(p.Runs)+1), Name: filepath.Base(path), Bytes: bytes}
	if path == "" { // a quantization that did not meet its limit wrote none
		r.Name = "(nothing written)"
	}
	p.Runs = append(p.Runs, r)
	return r
}

func (p *page) find(path string, bytes int64) *run {
	for _, r := range p.Runs {
		if r.Name == filepath.Base(path) && r.Bytes == bytes {
			return r
		}
	}
	return nil
}

// addEvaluation puts an evaluation in the picture of its text and protocol.
func (p *page) addEvaluation(e *Evaluation) {
	scored := "the second half of each scored"
	if e.Chunks > 0 && e.TokensScored/e.Chunks >= e.Context-1 {
		scored = "every token scored"
	}
	bos := ""
	if e.BOS {
		bos = ", the first token replaced by BOS"
	}
	protocol := fmt.Sprintf("%d chunks of %d tokens%s, %s", e.Chunks, e.Context, bos, scored)
	text := filepath.Base(e.Text)
	i := slices.IndexFunc(p.Sizes, func(s *sizes) bool { return s.Text == text && s.Protocol == protocol })
	if i < 0 {
		i = len(p.Sizes)
		p.Sizes = append(p.Sizes, &sizes{ID: fmt.Sprintf("sizes-%d", i+1), Text: text, Protocol: protocol})
	}
	pt := point{
		Name: filepath.Base(e.Model), Activations: e.Activations, Bytes: e.Bytes, BitsPerWeight: e.BitsPerWeight,
		Perplexity: float64(e.Perplexity), StdErr: float64(e.StdErr),
	}
	if e.Divergence != nil {
		pt.Base, pt.KL, pt.KLStdErr, pt.SameTop = filepath.Base(e.Base), e.KL, e.KLStdErr, 100*e.SameTop
	}
	if r := p.find(e.Model, e.Bytes); r != nil {
		pt.Run = r.ID
		r.Evaluations = append(r.Evaluations, evaluationRow{Text: text, Protocol: protocol, point: pt})
	}
	p.Sizes[i].Points = append(p.Sizes[i].Points, pt)
}

// taskRow is one measure of a task.
type taskRow struct {
	Model, Task, Measure string
	Examples             int
	Value, Base          string
}

func taskRows(t *TaskEvaluation) []taskRow {
	var rows []taskRow
	add := func(name string, m *taskMeasure) {
		if m == nil {
			return
		}
		row := taskRow{Model: filepath.Base(t.Model), Task: filepath.Base(t.Task), Measure: name, Examples: t.Examples,
			Value: fmt.Sprintf("%.2f%s ± %.2f", m.scale*float64(m.Value), m.unit, m.scale*float64(m.StdErr))}
		if m.Base != nil && m.Difference != nil && m.DifferenceStdErr != nil {
			row.Base = fmt.Sprintf("%s: %.2f%s, difference %+.2f ± %.2f", filepath.Base(t.Base), m.scale*float64(*m.Base), m.unit,
				m.scale*float64(*m.Difference), m.scale*float64(*m.DifferenceStdErr))
		}
		rows = append(rows, row)
	}
	add("accuracy", percent(t.Accuracy))
	add("accuracy per character", percent(t.AccuracyNorm))
	add("accuracy per token", percent(t.AccuracyPerToken))
	if t.Perplexity != nil {
		add("perplexity of the word", &taskMeasure{t.Perplexity, 1, ""})
	}
	return rows
}

// num prints three significant digits, without an exponent where that stays short.
func num(v float64) string {
	switch a := math.Abs(v); {
	case v == 0:
		return "0"
	case a >= 1e6 || a < 1e-4:
		s := fmt.Sprintf("%.2e", v)
		mantissa, exp, _ := strings.Cut(s, "e")
		sign := ""
		if strings.HasPrefix(exp, "-") {
			sign = "⁻"
		}
		return mantissa + "·10" + sign + superscript(strings.TrimLeft(exp, "+-0"))
	default:
		return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(a)))), v)
	}
}

func superscript(digits string) string {
	return strings.NewReplacer("0", "⁰", "1", "¹", "2", "²", "3", "³", "4", "⁴", "5", "⁵", "6", "⁶", "7", "⁷", "8", "⁸",
		"9", "⁹").Replace(digits)
}

var byteUnits = []struct {
	name string
	size float64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"bytes", 1}}

// byteUnit returns the largest unit that n has at least one of.
func byteUnit(n int64) (name string, size float64) {
	for _, u := range byteUnits {
		if float64(n) >= u.size {
			return u.name, u.size
		}
	}
	return "bytes", 1
}

func formatBytes(n int64) string {
	name, unit := byteUnit(n)
	if unit == 1 {
		return fmt.Sprintf("%d bytes", n)
	}
	v := float64(n) / unit
	return fmt.Sprintf("%.*f %s", max(0, 2-int(math.Log10(v))), v, name)
}

// descending orders floats with the largest first.
func descending(a, b float64) int { return cmp.Compare(b, a) }
