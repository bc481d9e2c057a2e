// Package ui shows a person what a long run is doing: a bar on a terminal, one line per layer elsewhere.
package ui

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Progress receives what a run is doing. Its methods may be called from several goroutines.
type Progress interface {
	// Stage begins a stage of total units of work, and ends the one before. Units should take even time, as weights
	// and tokens do, for the estimate of what remains to be right.
	Stage(name string, total int64)
	// Expect says how long the stage is expected to take: what remains is told from its beginning, and corrected by what is done.
	Expect(d time.Duration)
	// Skip says that n units of the stage need not be done.
	Skip(n int64)
	// Item names the part of the stage that begins, mostly a layer: "layer 3/32".
	Item(name string)
	// Detail names what is at work inside the item: "attn_q".
	Detail(name string)
	// Add says that n more units are done.
	Add(n int64)
	// Done ends the last stage.
	Done()
}

// New returns a Progress that writes to w: a bar if w is a terminal, plain lines if it is not.
func New(w io.Writer) Progress {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return NewBar(w)
	}
	return NewLines(w)
}

// lines writes one line for each item.
type lines struct {
	mu    sync.Mutex
	w     io.Writer
	stage string
	left  estimate
}

// NewLines returns a Progress that writes one line per item to w, each with the time that the stage still needs.
func NewLines(w io.Writer) Progress { return &lines{w: w} }

func (l *lines) Stage(name string, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stage, l.left = name, newEstimate(total)
}

func (l *lines) Expect(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left.expected = d
}

func (l *lines) Skip(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left.skip(n)
}

func (l *lines) Item(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, "%s: %s%s\n", l.stage, name, l.left.String())
}

func (l *lines) Detail(string) {}

func (l *lines) Add(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left.add(n)
}

func (l *lines) Done() {}

// estimate is how much of a stage is done, and how long the rest takes.
type estimate struct {
	start    time.Time
	added    time.Time // when more was done last
	done     int64
	total    int64
	expected time.Duration // for all; 0: nobody knows
}

func newEstimate(total int64) estimate {
	now := time.Now()
	return estimate{start: now, added: now, total: total}
}

func (e *estimate) add(n int64) {
	e.done += n
	e.added = time.Now()
}

func (e *estimate) skip(n int64) {
	if n = min(n, e.total); n <= 0 {
		return
	}
	e.expected = time.Duration(float64(e.expected) * float64(e.total-n) / float64(e.total))
	e.total -= n
}

// expectedShare is the share of the stage as which the expectation counts beside what has really been done.
const expectedShare = 0.05

// leastShare is how much of a stage must be done for the rest to be told from that alone.
const leastShare = 0.01

// remaining extrapolates from what is done, and from what was expected; 0 where nothing tells: the first hundredth of a stage does not.
func (e *estimate) remaining() time.Duration {
	share := float64(e.done) / float64(e.total)
	if e.total <= e.done || share < leastShare && e.expected <= 0 {
		return 0
	}
	took := e.added.Sub(e.start).Seconds()
	all := took / share // seconds
	if e.expected > 0 {
		all = (took + expectedShare*e.expected.Seconds()) / (share + expectedShare)
	}
	// What is under way has been since the last was done.
	left := all*(1-share) - time.Since(e.added).Seconds()
	return time.Duration(max(left, 0) * float64(time.Second))
}

// String is " (about 5m0s left)", or empty below a second.
func (e *estimate) String() string {
	d := e.remaining()
	if d < time.Second {
		return ""
	}
	return fmt.Sprintf(" (about %s left)", d.Round(time.Second))
}

// bar draws one bar per stage.
type bar struct {
	mu     sync.Mutex
	w      io.Writer
	bar    *progressbar.ProgressBar // nil between stages
	stage  string
	item   string
	detail string
	left   estimate
	// described is when the bar last said what is at work.
	described time.Time
}

// NewBar returns a Progress that draws a bar on the terminal w.
func NewBar(w io.Writer) Progress { return &bar{w: w} }

func (b *bar) Stage(name string, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end()
	b.stage, b.item, b.detail, b.left = name, "", "", newEstimate(total)
	b.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(b.w),
		progressbar.OptionSetDescription(name),
		progressbar.OptionSetPredictTime(false), // describe does
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionSetWidth(24),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

func (b *bar) Expect(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left.expected = d
}

func (b *bar) Skip(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left.skip(n)
	if b.bar != nil {
		b.bar.ChangeMax64(b.left.total)
	}
}

func (b *bar) Item(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.item, b.detail = name, ""
	b.describe()
}

func (b *bar) Detail(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.detail = name
	b.describe()
}

// describe says what is at work, and how long the stage still takes.
func (b *bar) describe() {
	if b.bar == nil {
		return
	}
	s := b.stage
	for _, part := range []string{b.item, b.detail} {
		if part != "" {
			s += ": " + part
		}
	}
	b.described = time.Now()
	b.bar.Describe(s + b.left.String())
}

func (b *bar) Add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar != nil {
		b.left.add(n)
		_ = b.bar.Add64(n) // fails only when the terminal is gone
		if time.Since(b.described) >= time.Second {
			b.describe()
		}
	}
}

func (b *bar) Done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end()
}

// end wipes the stage's bar, so that what is printed next starts on a clean line.
func (b *bar) end() {
	if b.bar != nil {
		_ = b.bar.Clear()
		b.bar = nil
	}
}
