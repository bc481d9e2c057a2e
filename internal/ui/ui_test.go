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

func TestRemaining(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		want        time.Duration
	}{{0, 10, 0}, {10, 10, 0}, {11, 10, 0}, {5, 10, time.Minute}, {1, 4, 3 * time.Minute}} {
		if got := remaining(time.Minute, c.done, c.total); got != c.want {
			t.Errorf("%d of %d in a minute: %v left, want %v", c.done, c.total, got, c.want)
		}
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
