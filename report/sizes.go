package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/eval"
)

// sizes is what models of different sizes make of one text.
type sizes struct {
	ID, Text, Protocol string
	Bases              string // what divergences are measured from
	Points             []point
	Charts             []*chart
}

// point is a model's evaluation.
type point struct {
	Number        int
	Name          string
	Activations   string
	Run           string // the ID of its section, or ""
	Bytes         int64
	BitsPerWeight float64
	Perplexity    float64
	StdErr        float64
	Base          string // what KL and SameTop compare with; "" without one
	KL            float64
	KLStdErr      float64
	SameTop       float64 // percent
}

// Finite says whether the perplexity is a number, and not what JSON calls null.
func (p *point) Finite() bool { return eval.Figure(p.Perplexity).Finite() }

// draw numbers the points by size and puts them in pictures.
func (s *sizes) draw() {
	slices.SortStableFunc(s.Points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.Perplexity, b.Perplexity), cmp.Compare(a.Name, b.Name))
	})
	var bases []string
	for i := range s.Points {
		if base := s.Points[i].Base; base != "" && !slices.Contains(bases, base) {
			bases = append(bases, base)
		}
	}
	s.Bases = strings.Join(bases, ", ")
	var ppl, kl []mark
	for i := range s.Points {
		p := &s.Points[i]
		p.Number = i + 1
		m := mark{Number: p.Number, x: float64(p.Bytes), y: p.Perplexity,
			Title: fmt.Sprintf("%d: %s, %s, perplexity %.4f", p.Number, p.Name, formatBytes(p.Bytes), p.Perplexity)}
		if p.Finite() {
			ppl = append(ppl, m)
		}
		if p.Base != "" && p.KL > 0 { // the base itself is at 0
			m.y = p.KL
			m.Title = fmt.Sprintf("%d: %s, %s, KL divergence %s", p.Number, p.Name, formatBytes(p.Bytes), num(p.KL))
			kl = append(kl, m)
		}
	}
	const fewest = 2 // for a picture
	if len(ppl) >= fewest {
		s.Charts = append(s.Charts, newChart("Perplexity against size", ppl))
	}
	if len(kl) >= fewest {
		s.Charts = append(s.Charts, newChart("KL divergence against size", kl))
	}
}

// chart is a scatter plot in SVG units, which are pixels on a phone.
type chart struct {
	Title, Unit    string // of the horizontal axis
	X, Y           []tick
	Marks          []mark
	Width, Height  int
	Left, Right    float64 // of the plot area
	Top, Bottom    float64
	XLabel, YLabel float64 // where the axes' labels are
}

type tick struct {
	At    float64
	Label string
}

// mark is a point of a chart.
type mark struct {
	Number           int
	Title            string
	CX, CY           float64
	LabelX, LabelY   float64
	x, y             float64
	labelW, labelTop float64
}

const (
	chartWidth  = 360
	chartHeight = 260
	chartLeft   = 48
	chartRight  = 348
	chartTop    = 12
	chartBottom = 218
	markRadius  = 4.5
)

func newChart(title string, marks []mark) *chart {
	c := &chart{Title: title, Width: chartWidth, Height: chartHeight, Left: chartLeft, Right: chartRight, Top: chartTop,
		Bottom: chartBottom, XLabel: chartBottom + 17, YLabel: chartLeft - 6, Marks: slices.Clone(marks)}
	xlo, xhi, ylo, yhi := math.Inf(1), 0.0, math.Inf(1), 0.0
	for _, m := range marks {
		xlo, xhi = min(xlo, m.x), max(xhi, m.x)
		ylo, yhi = min(ylo, m.y), max(yhi, m.y)
	}
	xlo, xhi = widen(xlo, xhi)
	ylo, yhi = widen(ylo, yhi)
	unit, size := byteUnit(int64(xhi))
	c.Unit = unit
	px := func(x float64) float64 { return round1(chartLeft + (x-xlo)/(xhi-xlo)*(chartRight-chartLeft)) }
	py := func(y float64) float64 { return round1(chartBottom - (y-ylo)/(yhi-ylo)*(chartBottom-chartTop)) }
	for _, v := range ticks(xlo/size, xhi/size, 5) {
		c.X = append(c.X, tick{px(v * size), fmt.Sprintf("%g", v)})
	}
	for _, v := range ticks(ylo, yhi, 5) {
		c.Y = append(c.Y, tick{py(v), fmt.Sprintf("%g", v)})
	}
	for i := range c.Marks {
		m := &c.Marks[i]
		m.CX, m.CY = px(m.x), py(m.y)
	}
	c.label()
	return c
}

// widen leaves some room on both sides of a range, which has no negative values.
func widen(lo, hi float64) (float64, float64) {
	room := 0.08 * (hi - lo)
	if room < 1e-9*hi { // as good as one value; ticks between would be finer than float64
		room = 0.1 * hi
	}
	if room == 0 {
		room = 1
	}
	return max(lo-room, 0), hi + room
}

func round1(v float64) float64 { return math.Round(10*v) / 10 }

// ticks returns about n round numbers between lo and hi.
func ticks(lo, hi float64, n int) []float64 {
	step := math.Pow(10, math.Floor(math.Log10((hi-lo)/float64(n))))
	for _, f := range []float64{2, 2.5, 2} { // 2, 5, 10
		if (hi-lo)/step <= float64(n) {
			break
		}
		step *= f
	}
	var out []float64
	for k := math.Ceil(lo / step); k*step <= hi+step/1e6; k++ {
		out = append(out, math.Round(k*step*1e9)/1e9)
	}
	return out
}

// label puts each mark's number where it covers no other mark and no other number, if there is such a place.
func (c *chart) label() {
	const w, h = 8, 10 // of a digit
	overlap := func(i int, x, y, width float64) (n int) {
		for j := range c.Marks {
			m := &c.Marks[j]
			if math.Abs(m.CX-x) < width/2+markRadius && math.Abs(m.CY-y) < h/2+markRadius {
				n++
			}
			if j < i && math.Abs(m.LabelX-x) < (width+m.labelW)/2 && math.Abs(m.labelTop-y) < h {
				n++
			}
		}
		if x-width/2 < chartLeft || x+width/2 > chartWidth || y-h/2 < 0 || y+h/2 > chartBottom {
			n++
		}
		return n
	}
	for i := range c.Marks {
		m := &c.Marks[i]
		width := float64(w * len(fmt.Sprint(m.Number)))
		dx, dy := markRadius+width/2+3, markRadius+h/2+3.0
		best := math.MaxInt
		for _, at := range [][2]float64{{dx, 0}, {-dx, 0}, {dx, -dy}, {dx, dy}, {-dx, -dy}, {-dx, dy}, {2.2 * dx, 0}, {-2.2 * dx, 0}} {
			x, y := m.CX+at[0], m.CY+at[1]
			if n := overlap(i, x, y, width); n < best {
				best = n
				m.LabelX, m.labelTop, m.labelW = round1(x), y, width
				m.LabelY = round1(y + h/2 - 1) // the baseline
			}
		}
	}
}
