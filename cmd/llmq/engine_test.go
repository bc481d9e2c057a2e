//go:build unix && !nonats

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/llmq/llmq/engine/cluster"
	"github.com/llmq/llmq/kernels"
)

// process is a command line in a process of its own.
type process struct {
	*exec.Cmd
	lines *bufio.Scanner
	said  []string
}

func begin(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	return prepare(env, args...).begin(t)
}

func prepare(env []string, args ...string) *process {
	cmd := exec.Command(os.Args[0])
	cmd.Env = slices.Concat(os.Environ(), env, []string{argsVariable + "=" + strings.Join(args, "\n")})
	return &process{Cmd: cmd}
}

func (p *process) begin(t *testing.T) *process {
	t.Helper()
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Process.Kill() })
	p.lines = bufio.NewScanner(stderr)
	return p
}

// until waits for a line with a text in it, or the end if that is "", and returns the line.
func (p *process) until(text string) string {
	for p.lines.Scan() {
		p.said = append(p.said, p.lines.Text())
		if text != "" && strings.Contains(p.lines.Text(), text) {
			return p.lines.Text()
		}
	}
	return ""
}

// end waits for the process's end.
func (p *process) end() (code int, said string) {
	p.until("")
	p.Wait()
	return p.ProcessState.ExitCode(), strings.Join(p.said, "\n")
}

// othersVariable makes a coordinator wait for another process, which does a unit, before it does any itself.
const othersVariable = "LLMQ_TEST_OTHERS"

func init() {
	if os.Getenv(othersVariable) == "" {
		return
	}
	beforeWork = func(ctx context.Context, c *cluster.Coordinator) {
		for !slices.ContainsFunc(c.Workers(), func(w cluster.Standing) bool { return w.Done > 0 }) && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestWorkers: a coordinator and a worker in processes of their own write the file that one process writes, though both are
// killed and started again, and the worker has instructions that the coordinator does without.
func TestWorkers(t *testing.T) {
	dir, out, work := folder(t, "llama"), t.TempDir(), filepath.Join(t.TempDir(), "work")
	options := append([]string{"--refine", "20", "--bias-correction", "--tensor-type", "attn_q=q5_1"}, calibrate...)
	run := func(file string, more ...string) []string {
		return slices.Concat([]string{"quantize", dir, "-o", filepath.Join(out, file)}, options, more)
	}
	tiers := kernels.Tiers()
	lower := []string{kernels.TierEnv + "=" + tiers[max(0, len(tiers)-2)].String()}
	first := append(slices.Clip(lower), othersVariable+"=1")
	whole := begin(t, lower, run("whole.gguf")...)
	if code, said := whole.end(); code != exitOK {
		t.Fatal(said)
	}
	many := run("out.gguf", "--work", work, "--listen", "127.0.0.1:0", "--ack-wait", "500ms", "--force") // as the first may have ended before it is killed
	joins := func(c *process) *process {
		t.Helper()
		line := c.until("workers can join: ")
		_, command, ok := strings.Cut(line, "llmq worker ")
		if !ok {
			t.Fatalf("the coordinator does not say how to join:\n%s", strings.Join(c.said, "\n"))
		}
		return begin(t, nil, append([]string{"worker"}, strings.Fields(command)...)...)
	}
	c := begin(t, first, many...)
	w := joins(c)
	if w.until("takes part") == "" {
		t.Fatalf("the worker ends:\n%s", strings.Join(w.said, "\n"))
	}
	c.until("layer 2/2")
	c.Process.Signal(syscall.SIGKILL)
	w.Process.Signal(syscall.SIGKILL)
	c.end()
	w.end()

	c = begin(t, lower, many...)
	w = joins(c)
	if code, said := c.end(); code != exitOK {
		t.Fatalf("the coordinator ends with %d:\n%s", code, said)
	}
	// It may have been over before the worker came: that sees it then.
	if code, said := w.end(); code != exitOK {
		t.Errorf("the worker ends with %d:\n%s", code, said)
	}
	a, err := os.ReadFile(filepath.Join(out, "whole.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "out.gguf"))
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("another file than one process's, %v", err)
	}
}

// TestEvalWorkers: a coordinator and a worker in processes of their own print the figures that one process prints, and a worker that
// does not see the run's models is refused by name.
func TestEvalWorkers(t *testing.T) {
	dir, base, work := folder(t, "llama"), folder(t, "llama3-tied"), filepath.Join(t.TempDir(), "work")
	tiers := kernels.Tiers()
	lower := []string{kernels.TierEnv + "=" + tiers[max(0, len(tiers)-2)].String()}
	args := []string{"eval", dir, "--base", base, "--text", license, "--context", "256", "--chunks", "9", "--json"}
	figures := func(out []byte) map[string]any {
		t.Helper()
		var v map[string]any
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		for _, key := range []string{"seconds", "tokens_per_second", "peak_rss_bytes"} {
			delete(v, key)
		}
		return v
	}
	var alone, many bytes.Buffer
	one := prepare(lower, args...)
	one.Stdout = &alone
	if code, said := one.begin(t).end(); code != exitOK {
		t.Fatal(said)
	}
	head := prepare(append(lower, othersVariable+"=1"), append(args, "--work", work, "--listen", "127.0.0.1:0", "--ack-wait", "500ms")...)
	head.Stdout = &many
	c := head.begin(t)
	_, command, ok := strings.Cut(c.until("workers can join: "), "llmq worker ")
	if !ok {
		t.Fatalf("the coordinator does not say how to join:\n%s", strings.Join(c.said, "\n"))
	}
	worker := func(more ...string) []string { return slices.Concat([]string{"worker"}, strings.Fields(command), more) }
	lacking := filepath.Join(t.TempDir(), "not-there")
	for want, args := range map[string][]string{
		lacking: worker("--checkpoint", lacking),
		base + ": is not the model that the run is about": worker("--checkpoint", base),
		dir + ": is not the model that the run is about":  worker("--base", dir),
	} {
		if code, said := begin(t, nil, args...).end(); code == exitOK || !strings.Contains(said, want) {
			t.Errorf("%q: exit %d, %s", args, code, said)
		}
	}
	w := begin(t, nil, worker()...)
	if code, said := c.end(); code != exitOK {
		t.Fatalf("the coordinator ends with %d:\n%s", code, said)
	}
	if code, said := w.end(); code != exitOK {
		t.Errorf("the worker ends with %d:\n%s", code, said)
	}
	if got, want := figures(many.Bytes()), figures(alone.Bytes()); !reflect.DeepEqual(got, want) {
		t.Errorf("figures are %v, of one process %v", got, want)
	}
	if r := must(t, "status", work); !strings.Contains(r.stdout, "5 of 5") || !strings.Contains(r.stdout, "shards") {
		t.Errorf("status prints\n%s", r.stdout)
	}
}

// TestWorkerErrors: what is wrong is said at once.
func TestWorkerErrors(t *testing.T) {
	dir, out, work := folder(t, "llama"), filepath.Join(t.TempDir(), "out.gguf"), filepath.Join(t.TempDir(), "work")
	t.Setenv(tokenEnv, "")
	quantize := func(more ...string) []string {
		return slices.Concat([]string{"quantize", dir, "-o", out}, calibrate, more)
	}
	for want, args := range map[string][]string{
		"give it with --work":           quantize("--listen", "127.0.0.1:0"),
		"--listen and --engine":         quantize("--work", work, "--listen", "127.0.0.1:0", "--engine", "nats://127.0.0.1:1"),
		"give a secret":                 quantize("--work", work, "--listen", ":0"),
		"no HOST:PORT":                  quantize("--work", work, "--listen", "4222"),
		"--ack-wait":                    quantize("--work", work, "--listen", "127.0.0.1:0", "--ack-wait", "1ms"),
		"not yet divided among":         quantize("--work", filepath.Join(t.TempDir(), "w"), "--listen", "127.0.0.1:0", "--method", "awq"),
		"--token is for runs":           quantize("--token", "x"),
		"--ack-wait is for runs":        quantize("--ack-wait", "5s"),
		"not divided among":             {"quantize", dir, "--dry-run", "--method", "rtn", "--machines", "3", "-o", out},
		"no work folder given":          {"worker", "nats://127.0.0.1:1"},
		"no run has worked in this":     {"worker", "nats://127.0.0.1:1", "--work", t.TempDir()},
		"no URL given":                  {"worker"},
		"NATS server of your own: give": quantize("--work", work, "--listen", "127.0.0.1:0", "--creds", "x"),
	} {
		if r := llmq(t, args...); r.code == exitOK || !strings.Contains(r.stderr, want) {
			t.Errorf("%q: exit %d, %s", args, r.code, r.stderr)
		}
	}
}
