package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
)

func write(t *testing.T, inputs ...*Input) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, inputs); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestSelfContained: whatever names hold, the page is well-formed, has no script, and refers to nothing outside itself.
func TestSelfContained(t *testing.T) {
	page := write(t, everything(t)...)
	checkNesting(t, page)
	text := regexp.MustCompile(`(?s)<style>.*?</style>|>[^<]*<|(title|aria-label)="[^"]*"`).ReplaceAllString(page, "><")
	for _, bad := range []string{"<script", "<img", "<link", "<iframe", "src=", "href=\"http", "onerror=", "url("} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %q outside of text", bad)
		}
	}
	for _, bad := range []string{"url(", "@import", "</"} {
		if strings.Contains(styleCSS, bad) {
			t.Errorf("the style has %q", bad)
		}
	}
	if !strings.Contains(page, "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") {
		t.Error("the hostile name is not shown")
	}
	if strings.Contains(page, "ZgotmplZ") || strings.Contains(page, "%!") {
		t.Error("a value was not fit for its place in the page")
	}
	if again := write(t, everything(t)...); again != page {
		t.Error("two pages about the same inputs differ")
	}
}

// checkNesting checks that elements are closed in the order in which they were opened, and that ids are unique and linked.
func checkNesting(t *testing.T, page string) {
	t.Helper()
	void := []string{"meta", "br", "wbr", "!doctype"}
	var open []string
	for _, m := range regexp.MustCompile(`<(/?)([a-zA-Z!][a-zA-Z0-9]*)((?:[^>"]|"[^"]*")*)>`).FindAllStringSubmatch(page, -1) {
		name := strings.ToLower(m[2])
		switch {
		case slices.Contains(void, name) || strings.HasSuffix(m[3], "/"):
		case m[1] == "":
			open = append(open, name)
		case len(open) == 0 || open[len(open)-1] != name:
			t.Fatalf("</%s> closes %v", name, open)
		default:
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("%v are not closed", open)
	}
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if ids[m[1]] {
			t.Errorf("id %q twice", m[1])
		}
		ids[m[1]] = true
	}
	for _, m := range regexp.MustCompile(` (?:href="#|aria-labelledby=")([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !ids[m[1]] {
			t.Errorf("no element has the id %q", m[1])
		}
	}
	if len(ids) == 0 {
		t.Error("no ids")
	}
}

// TestPage: what the inputs say is on the page, in its place.
func TestPage(t *testing.T) {
	p, err := newPage(everything(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range p.Runs {
		names = append(names, r.Name)
	}
	if !slices.Equal(names, []string{"a.gguf", "b.gguf", "c.gguf"}) {
		t.Fatalf("runs %v: the file and the quantization that wrote it are to be one", names)
	}
	a, b, c := p.Runs[0], p.Runs[1], p.Runs[2]
	if len(a.Evaluations) != 1 || a.Evaluations[0].Perplexity != 6.4 || a.Method != "awq+gptq" || len(a.Metadata) != 1 || a.Seconds != 1234.5 {
		t.Errorf("a: %+v", a)
	}
	if c.Errors == nil || c.Errors.Rows[0].Cells[0].Text == "" || c.Seconds != 0 || len(c.Outliers) != 1 {
		t.Errorf("c: %+v", c)
	}
	for _, r := range p.Runs {
		if len(r.Errors.Rows) != fixtureLayers || len(r.Bits.Rows) != fixtureLayers {
			t.Fatalf("%s: %d and %d layers", r.Name, len(r.Errors.Rows), len(r.Bits.Rows))
		}
	}
	// Columns in the order of the forward pass, the unknown one last and only in its layer.
	if cols := a.Errors.Columns; strings.Join(cols[0], "") != "attn_q" || strings.Join(cols[6], "") != "ffn_down" || len(cols) != 8 {
		t.Errorf("columns %q", cols)
	}
	for _, row := range a.Errors.Rows {
		if has := row.Cells[7].Text != ""; has != (row.Layer == 3) {
			t.Errorf("layer %d: %+v in the column of layer 3's own linear", row.Layer, row.Cells[7])
		}
	}
	// One scale for all: the least error of all is the coldest, the largest the hottest.
	least, most := a.Errors.Rows[0].Cells[0], b.Errors.Rows[fixtureLayers-1].Cells[6]
	if least.Heat != 0 || most.Heat != 100 || least.Text != "0.05" || !strings.Contains(most.Title, "blk.11.ffn_down.weight: 0.25") {
		t.Errorf("least %+v, most %+v", least, most)
	}
	if m := a.Predicted; m == nil || len(m.Rows) != fixtureLayers || m.Rows[1].Cells[0].Title != "blk.1.attn_q.weight: 0.000100 in Q4_K" || c.Predicted != nil {
		t.Errorf("%+v", m)
	}
	if len(a.Smoothing.Rows) != fixtureLayers || len(a.Histograms) != 2*fixtureLayers || len(a.Foldings) != fixtureLayers {
		t.Errorf("%d smoothed groups, %d histograms, %d left", len(a.Smoothing.Rows), len(a.Histograms), len(a.Foldings))
	}
	for _, row := range a.Smoothing.Rows {
		if b, a := row.Bars[0], row.Bars[1]; !(b.From < b.P50 && b.P50 < b.P99 && b.P99 < b.To && a.To < b.To) {
			t.Errorf("%+v", row)
		}
	}
	s := p.Sizes[0]
	if len(p.Sizes) != 1 || len(s.Points) != 4 || len(s.Charts) != 2 || len(s.Charts[1].Marks) != 3 {
		t.Fatalf("%+v", s)
	}
	// Numbered by size, linked to their files.
	if s.Points[0].Name != "b.gguf" || s.Points[0].Run != b.ID || s.Points[3].Run != "" || s.Points[3].Number != 4 {
		t.Errorf("%+v", s.Points)
	}
	// Larger files are further right, better ones further down.
	m := s.Charts[0].Marks
	if !(m[0].CX < m[1].CX && m[1].CX == m[2].CX && m[2].CX < m[3].CX && m[0].CY < m[1].CY && m[1].CY > m[2].CY) {
		t.Errorf("%+v", m)
	}
	for _, c := range s.Charts {
		checkChart(t, c)
	}
	other := evaluation("out/a.gguf", 5<<30, 6.4, 0.006)
	other.Evaluation.Chunks--
	if p, err := newPage([]*Input{evaluation("x", 1, 6, 0.1), other}); err != nil || len(p.Sizes) != 2 || p.Sizes[0].Charts != nil {
		t.Errorf("evaluations by two protocols in one picture: %+v, %v", p.Sizes, err)
	}
}

// checkChart: everything is inside the picture, and no number lies on another.
func checkChart(t *testing.T, c *chart) {
	t.Helper()
	if len(c.X) < 2 || len(c.Y) < 2 {
		t.Errorf("%s: ticks %v and %v", c.Title, c.X, c.Y)
	}
	for i, m := range c.Marks {
		if m.CX < c.Left || m.CX > c.Right || m.CY < c.Top || m.CY > c.Bottom {
			t.Errorf("%s: mark %+v is outside", c.Title, m)
		}
		for _, other := range c.Marks[:i] {
			if math.Abs(m.LabelX-other.LabelX) < 8 && math.Abs(m.LabelY-other.LabelY) < 9 {
				t.Errorf("%s: the numbers of %+v and %+v overlap", c.Title, m, other)
			}
		}
	}
}

// TestCrowdedChart: numbers stay apart where models have one size and nearly one perplexity.
func TestCrowdedChart(t *testing.T) {
	s := &sizes{}
	for i := range 12 {
		s.Points = append(s.Points, point{Name: "m", Bytes: int64(4<<30 + i%4*(1<<29)), Perplexity: 6 + 0.1*float64(i/4)})
	}
	s.draw()
	checkChart(t, s.Charts[0])
	one := &sizes{Points: []point{{Bytes: 7, Perplexity: 5}, {Bytes: 7, Perplexity: 5}}}
	one.draw()
	near := &sizes{Points: []point{{Bytes: 7, Perplexity: 5}, {Bytes: 7, Perplexity: math.Nextafter(5, 6)}}}
	near.draw()
	checkChart(t, near.Charts[0])
	if c := one.Charts[0]; math.IsNaN(c.Marks[0].CX+c.Marks[0].CY) || c.Unit != "bytes" {
		t.Errorf("%+v", c)
	}
}

func TestSteps(t *testing.T) {
	if got, want := steps([]int64{0, 1, 3}, 0, plotWidth), "M0 40V40H53.33V20H106.7V0H160V40Z"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := steps([]int64{0, 0}, 0, plotWidth); got != "" {
		t.Errorf("%s of nothing", got)
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		v    float64
		want string
	}{{0, "0"}, {1, "1.00"}, {-2.345, "-2.35"}, {123.4, "123"}, {99999, "99999"}, {0.00123, "0.00123"}, {1.5e-5, "1.50·10⁻⁵"},
		{-2e-12, "-2.00·10⁻¹²"}, {3e10, "3.00·10¹⁰"}} {
		if got := num(c.v); got != c.want {
			t.Errorf("%g: %s, want %s", c.v, got, c.want)
		}
	}
	for _, c := range []struct {
		v    float64
		exp  int
		want string
	}{{0, -3, "0"}, {0.00123, -3, "1.23"}, {0.0123, -3, "12.3"}, {0.123, -3, "123"}, {1e-9, -3, "<0.01"}, {0.009996, -3, "10.0"}} {
		if got := scaled(c.v, c.exp); got != c.want {
			t.Errorf("%g × 10^%d: %s, want %s", c.v, -c.exp, got, c.want)
		}
	}
	for _, c := range []struct {
		lo, hi float64
		want   []float64
	}{{0, 10, []float64{0, 2, 4, 6, 8, 10}}, {3.3, 3.8, []float64{3.3, 3.4, 3.5, 3.6, 3.7, 3.8}}, {0.9, 8.2, []float64{2, 4, 6, 8}}} {
		if got := ticks(c.lo, c.hi, 5); !slices.Equal(got, c.want) {
			t.Errorf("%g to %g: %v, want %v", c.lo, c.hi, got, c.want)
		}
	}
}

// TestReadBack: what the commands print is read as what it is.
func TestReadBack(t *testing.T) {
	for _, in := range everything(t) {
		var v any
		switch {
		case in.Quantization != nil:
			v = in.Quantization
		case in.Evaluation != nil:
			v = in.Evaluation
		case in.Task != nil:
			v = in.Task
		case in.Profile != nil:
			v = in.Profile
		default:
			continue
		}
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "x.json")
		if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path)
		if err != nil {
			t.Errorf("%s: %v", in.Path, err)
			continue
		}
		in.Path, got.Path = "x.json", "x.json"
		if write(t, in) != write(t, got) {
			t.Errorf("%s: what was read makes another page", in.Path)
		}
	}
}

// TestRefused: files that llmq did not write, or that no page can be made of.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	foreign := filepath.Join(dir, "foreign.gguf")
	infos := []ggml.Info{{Name: "a", Type: ggml.F32, Shape: []int{4}}}
	w, err := gguf.Create(foreign, gguf.Metadata{{Key: "general.architecture", Value: "llama"}}, infos, gguf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.WriteTensor("a", make([]byte, 16)), w.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path    string
		notOurs bool
		want    string
	}{
		{filepath.Join(dir, "none"), false, "none"},
		{dir, false, "is a folder"},
		{foreign, true, "foreign.gguf: not written by llmq: a GGUF file without llmq.* metadata"},
		{file("cut.gguf", "GGUF\x03\x00"), false, "cut.gguf"},
		{file("empty", ""), true, "empty: not written by llmq: neither a GGUF file nor a JSON object"},
		{file("text", "Hello, 世界"), true, "at byte 1"},
		{file("list", "[]"), true, "not written by llmq"},
		{file("other", `{"model":"x"}`), true, "JSON, but not what quantize --json, eval --json or profile writes"},
		{file("two", `{"model":"x"} {}`), true, "at byte 13: more than one value"},
		{file("cut.json", `{"output":"x","tensors":[`), true, "cut.json"},
		{file("dry", `{"output":"x","bits_per_weight":4,"memory_bytes":1,"tensors":[]}`), false, "dry: the plan of a --dry-run"},
		{file("none.json", `{"output":"x","bits_per_weight":4,"tensors":[]}`), false, "no tensors"},
		{file("type", `{"output":"x","bits_per_weight":4,"tensors":[{"name":"n","type":"Q9"}]}`), false, `type: tensor "n": ggml: no type is named "Q9"`},
		{file("negative", `{"output":"x","bits_per_weight":4,"tensors":[{"name":"n","type":"F32","relative_error":-1}]}`), false, `tensor "n": 0 bytes, errors -1 and 0`},
		{file("wrong", `{"output":7,"bits_per_weight":4,"tensors":[]}`), false, "wrong: json: cannot unmarshal number"},
		{file("old", `{"perplexity":5,"tokens_scored":7}`), false, `an evaluation without "model"`},
		{file("zero", `{"model":"m","perplexity":0,"tokens_scored":7}`), false, "perplexity 0"},
		{file("task", `{"model":"m","kind":"choices","accuracy":null}`), false, `"accuracy" is null`},
		{file("bins", `{"model":"m","linears":[],"checklist":[],"inputs":[{"name":"i","histogram":[1,-1]}]}`), false, `input "i": histogram: bin 1 has -1 values`},
	} {
		_, err := Read(c.path)
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNotOurs) != c.notOurs {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
	twice := []*Input{ggufFile("a/x.gguf", 7), ggufFile("b/x.gguf", 7)}
	short := ggufFile("x.gguf", 7)
	short.Model.Metadata.Set(model.ErrorsKey, []float32{1})
	for want, inputs := range map[string][]*Input{
		"b/x.gguf: a second file x.gguf of 7 bytes":                           twice,
		"a second quantization of q with 7 bytes":                             {quantization("q", 7, "Q4_K", 1), quantization("q", 7, "Q4_K", 1)},
		"llmq.relative_errors does not have a float32 for each of 84 tensors": {short},
	} {
		var b bytes.Buffer
		if err := Write(&b, inputs); err == nil || !strings.Contains(err.Error(), want) || b.Len() > 0 {
			t.Errorf("%v, want %q, and nothing written", err, want)
		}
	}
}

// TestNothingWritten: runs that did not meet their limit have no file; each has a section of its own.
func TestNothingWritten(t *testing.T) {
	p, err := newPage([]*Input{quantization("", 1<<30, "Q4_K", 1e-4), quantization("", 1<<30, "Q4_K", 2e-4)})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Runs) != 2 || p.Runs[0].Name != "(nothing written)" || p.Runs[0].ID == p.Runs[1].ID {
		t.Errorf("%d runs, the first %q", len(p.Runs), p.Runs[0].Name)
	}
}
