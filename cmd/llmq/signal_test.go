//go:build unix

package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
)

// argsVariable makes the test binary run llmq on the lines of its value.
const argsVariable = "LLMQ_TEST_ARGS"

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(argsVariable); ok {
		os.Args = append(os.Args[:1], strings.Split(args, "\n")...)
		main()
	}
	measureSpeeds = func(*pipeline.Plan, context.Context, *model.Model, int, int, string, func(pipeline.Speeds) float64) (pipeline.Speeds, []float64, error) {
		return pipeline.Speeds{Products: 1e11, Float32: 1e11, Weight: 1e-7, Column: 1e-10, Feature: 1e-9, Disk: 1e9}, nil, nil
	}
	os.Exit(m.Run())
}

// TestSignals ends a process in the middle of its work: nothing may be left, neither in the output's folder nor in that
// of temporary files, even if it has no time to clean up after itself.
func TestSignals(t *testing.T) {
	dir := folder(t, "llama")
	cases := [][]os.Signal{
		{os.Interrupt}, {syscall.SIGTERM}, {os.Interrupt, os.Interrupt}, {syscall.SIGTERM, os.Interrupt},
	}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		cases = append(cases, []os.Signal{syscall.SIGHUP})
	}
	for _, signals := range cases {
		out, temp := t.TempDir(), t.TempDir()
		args := append([]string{"quantize", dir, "-o", filepath.Join(out, "out.gguf"), "--refine", "1000000"}, calibrate...)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), argsVariable+"="+strings.Join(args, "\n"), "TMPDIR="+temp)
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := bufio.NewScanner(stderr)
		for said.Scan() && !strings.HasPrefix(said.Text(), "quantize: layer 1/2") {
		}
		if len(listing(t, out)) != 2 {
			t.Error("there is no output under way")
		}
		start := time.Now()
		for _, s := range signals {
			cmd.Process.Signal(s)
		}
		last := ""
		for said.Scan() {
			last = said.Text()
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || last != "llmq: interrupted" {
			t.Errorf("%v: %v, %q", signals, cmd.ProcessState, last)
		}
		if took := time.Since(start); took > patience+2*time.Second {
			t.Errorf("%v: took %v", signals, took)
		}
		if left := append(listing(t, out)[1:], listing(t, temp)[1:]...); len(left) > 0 {
			t.Errorf("%v left %v", signals, left)
		}
	}
}

// TestBrokenPipes: a run whose progress nobody reads any more goes on and writes its file; one whose result nobody reads ends
// as others do in a shell's pipe, without a word. Neither leaves anything behind.
func TestBrokenPipes(t *testing.T) {
	dir, out := folder(t, "llama"), t.TempDir()
	start := func(args ...string) *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), argsVariable+"="+strings.Join(args, "\n"))
		return cmd
	}
	cmd := start("convert", dir, "-o", filepath.Join(out, "out.gguf"))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	r.Close()
	if err := cmd.Run(); err != nil {
		t.Errorf("no one reads the progress: %v", err)
	}
	w.Close()
	if left := listing(t, out); len(left) != 2 || !strings.Contains(left[1], "out.gguf") {
		t.Errorf("left %v", left)
	}
	cmd = start("inspect", dir)
	if r, w, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = w, &stderr
	r.Close()
	cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitPipe || stderr.String() != "" {
		t.Errorf("no one reads the result: %v, %q", cmd.ProcessState, stderr.String())
	}
}
