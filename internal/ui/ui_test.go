package ui

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func run(p Progress) {
	p.Stage("quantize", 4)
	for _, layer := range []string{"layer 1/2", "layer 2/2"} {
		p.Item(layer)
		p.Detail("attn_q")
		p.Add(2)
	}
	p.Done()
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	run(NewLines(&out))
	want := "quantize: layer 1/2\nquantize: layer 2/2\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestBar(t *testing.T) {
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) { // on a fake clock: the bar redraws ten times a second at most
		p := NewBar(&out)
		p.Add(1) // before any stage
		p.Stage("quantize", 4)
		p.Item("layer 2/2")
		time.Sleep(time.Second)
		p.Detail("attn_q")
		time.Sleep(time.Second)
		p.Add(2)
		p.Done()
	})
	for _, want := range []string{"quantize: layer 2/2: attn_q", "50%"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

// TestRemaining: what remains is told from what is done, and where the stage was expected to take some time from that at first.
func TestRemaining(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		took        time.Duration // until that was done, and since
		since       time.Duration
		expected    time.Duration
		want        time.Duration
	}{
		{0, 10, time.Minute, 0, 0, 0},
		{1, 20000, 30 * time.Millisecond, 0, 0, 0},
		{10, 10, time.Minute, 0, 0, 0},
		{11, 10, time.Minute, 0, 0, 0},
		{5, 10, time.Minute, 0, 0, time.Minute},
		{5, 10, time.Minute, 10 * time.Second, 0, 50 * time.Second},
		{5, 10, time.Minute, time.Hour, 0, 0},
		{1, 4, time.Minute, 0, 0, 3 * time.Minute},
		{0, 10, 0, 0, time.Hour, time.Hour},
		{0, 10, 0, 10 * time.Minute, time.Hour, 50 * time.Minute},
		{0, 10, 0, 2 * time.Hour, time.Hour, 0},
		{5, 10, 30 * time.Minute, 0, time.Hour, 30 * time.Minute},
		// It takes twice as long: a tenth tells two thirds of that, half nearly all.
		{1, 10, 12 * time.Minute, 0, time.Hour, 90 * time.Minute},
		{5, 10, time.Hour, 0, time.Hour, 57*time.Minute + 16*time.Second},
	} {
		synctest.Test(t, func(t *testing.T) { // on a fake clock
			e := newEstimate(c.total)
			e.expected = c.expected
			time.Sleep(c.took)
			e.add(c.done)
			time.Sleep(c.since)
			if got := e.remaining().Round(time.Second); got != c.want {
				t.Errorf("%+v: %v left", c, got)
			}
		})
	}
}

// TestExpect: lines and bars tell what remains before anything is done, without what is skipped.
func TestExpect(t *testing.T) {
	for name, of := range map[string]func(*bytes.Buffer) Progress{
		"lines": func(b *bytes.Buffer) Progress { return NewLines(b) }, "bar": func(b *bytes.Buffer) Progress { return NewBar(b) },
	} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			p := of(&out)
			p.Stage("quantize", 40)
			p.Expect(time.Hour)
			p.Skip(10)
			p.Item("layer 2/4")
			p.Done()
			if want := "quantize: layer 2/4 (about 45m0s left)"; !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in %q", name, want, out.String())
			}
		})
	}
}

// TestNewOnFile: what is not a terminal gets lines without control characters.
func TestNewOnFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	run(New(f))
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(got, "\r\x1b") || bytes.Count(got, []byte("\n")) != 2 {
		t.Errorf("got %q", got)
	}
}

func TestConcurrent(t *testing.T) {
	for _, p := range []Progress{NewLines(&bytes.Buffer{}), NewBar(&bytes.Buffer{})} {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { run(p) })
		}
		wg.Wait()
	}
}
