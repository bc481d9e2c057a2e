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
	start time.Time
	done  int64
	total int64
}

// NewLines returns a Progress that writes one line per item to w, each with the time that the stage still needs.
func NewLines(w io.Writer) Progress { return &lines{w: w} }

func (l *lines) Stage(name string, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stage, l.start, l.done, l.total = name, time.Now(), 0, total
}

func (l *lines) Item(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := ""
	if d := remaining(time.Since(l.start), l.done, l.total); d >= time.Second {
		left = fmt.Sprintf(" (about %s left)", d.Round(time.Second))
	}
	fmt.Fprintf(l.w, "%s: %s%s\n", l.stage, name, left)
}

func (l *lines) Detail(string) {}

func (l *lines) Add(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done += n
}

func (l *lines) Done() {}

// remaining extrapolates from what is done; 0 where nothing is.
func remaining(elapsed time.Duration, done, total int64) time.Duration {
	if done <= 0 || total <= done {
		return 0
	}
	return time.Duration(float64(elapsed) / float64(done) * float64(total-done))
}

// bar draws one bar per stage.
type bar struct {
	mu    sync.Mutex
	w     io.Writer
	bar   *progressbar.ProgressBar // nil between stages
	stage string
	item  string
}

// NewBar returns a Progress that draws a bar on the terminal w.
func NewBar(w io.Writer) Progress { return &bar{w: w} }

func (b *bar) Stage(name string, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end()
	b.stage, b.item = name, ""
	b.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(b.w),
		progressbar.OptionSetDescription(name),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionSetWidth(24),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

func (b *bar) Item(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.item = name
	b.describe(b.stage + ": " + name)
}

func (b *bar) Detail(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.item == "" {
		b.describe(b.stage + ": " + name)
		return
	}
	b.describe(b.stage + ": " + b.item + ": " + name)
}

func (b *bar) describe(s string) {
	if b.bar != nil {
		b.bar.Describe(s)
	}
}

func (b *bar) Add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar != nil {
		_ = b.bar.Add64(n) // fails only when the terminal is gone
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
