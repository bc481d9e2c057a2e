package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
)

// heatmap is a table of layers by linears whose cells are coloured by their values, and have them as text.
type heatmap struct {
	ID, Caption, Note string
	Bits              bool       // coloured as bits, not as errors
	Columns           [][]string // names, in parts between which a line may break
	Rows              []heatRow
	Low, High         string // what the lightest and the darkest colour stand for
}

type heatRow struct {
	Layer int
	Cells []heatCell
}

// heatCell is one linear. Heat is 0 to 100; a cell without Text is one that the layer has not got.
type heatCell struct {
	Text, Title string
	Heat        int
}

// Shade names the colour of a cell's text: "dark" on a background of much heat, "mid" where only the dark theme's is
// light enough to need another, else "". With both themes' colours that keeps the contrast above WCAG's 4.5.
func (c heatCell) Shade() string {
	switch {
	case c.Heat >= 75:
		return "dark"
	case c.Heat >= 60:
		return "mid"
	}
	return ""
}

// heatScale maps positive values to colours by their logarithms.
type heatScale struct{ low, high float64 }

func newHeatScale() *heatScale { return &heatScale{math.Inf(1), 0} }

func (s *heatScale) add(v float64) {
	if v > 0 {
		s.low, s.high = min(s.low, v), max(s.high, v)
	}
}

func (s *heatScale) heat(v float64) int {
	switch {
	case v <= s.low, s.high == 0:
		return 0
	case s.high == s.low:
		return 50
	}
	return min(int(math.Round(100*math.Log(v/s.low)/math.Log(s.high/s.low))), 100)
}

// ends are what the lightest and the darkest colour stand for.
func (s *heatScale) ends() (low, high string) { return num(min(s.low, s.high)), num(s.high) }

// exponent is that of the power of ten by which values around the middle of the scale are short.
func (s *heatScale) exponent() int {
	if s.high == 0 {
		return 0
	}
	return int(math.Floor((math.Log10(s.low) + math.Log10(s.high)) / 2))
}

// scaled prints v over 10^exp with few digits.
func scaled(v float64, exp int) string {
	v /= math.Pow10(exp)
	switch {
	case v == 0:
		return "0"
	case v < 0.01:
		return "<0.01"
	case v < 9.995:
		return fmt.Sprintf("%.2f", v)
	case v < 99.95:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func powerOfTen(exp int) string {
	if exp < 0 {
		return "10⁻" + superscript(strconv.Itoa(-exp))
	}
	return "10" + superscript(strconv.Itoa(exp))
}

// linearOf returns the layer and the stem of a layer's linear; ok is false for anything else.
func linearOf(tensor string) (layer int, stem string, ok bool) {
	n := ggml.ParseName(tensor)
	return n.Layer, n.Stem, n.Layer >= 0 && n.Part == "weight" && !strings.Contains(n.Stem, "norm")
}

// linearOrder is that of the forward pass; other names come after these.
var linearOrder = []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}

// newHeatmap lays n linears out by the names that name gives; nil if there are none.
func newHeatmap(n int, name func(i int) string, cell func(i int) heatCell) *heatmap {
	m := &heatmap{}
	var columns []string
	at := map[int]map[string]int{} // tensor by layer and linear
	for i := range n {
		layer, linear, ok := linearOf(name(i))
		if !ok {
			continue
		}
		if at[layer] == nil {
			at[layer] = map[string]int{}
		}
		at[layer][linear] = i
		if !slices.Contains(columns, linear) {
			columns = append(columns, linear)
		}
	}
	if len(at) == 0 {
		return nil
	}
	rank := func(linear string) int {
		if i := slices.Index(linearOrder, linear); i >= 0 {
			return i
		}
		return len(linearOrder)
	}
	slices.SortFunc(columns, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	for _, c := range columns {
		m.Columns = append(m.Columns, strings.SplitAfter(c, "_"))
	}
	for layer, linears := range at {
		row := heatRow{Layer: layer, Cells: make([]heatCell, len(columns))}
		for c, linear := range columns {
			if i, ok := linears[linear]; ok {
				row.Cells[c] = cell(i)
			}
		}
		m.Rows = append(m.Rows, row)
	}
	slices.SortFunc(m.Rows, func(a, b heatRow) int { return cmp.Compare(a.Layer, b.Layer) })
	return m
}
