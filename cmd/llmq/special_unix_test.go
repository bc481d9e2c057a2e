//go:build linux || darwin

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writers are the commands that write a file, with inputs that do not exist: an output is refused before they are read.
var writers = []string{
	"convert ABSENT -o OUT --force", "quantize ABSENT --method rtn -o OUT --force", "quantize ABSENT --calib ABSENT -o OUT --force",
	"profile ABSENT --calib ABSENT -o OUT --force", "report ABSENT -o OUT --force", "eval ABSENT --tokens ABSENT --logits OUT --force",
}

// TestSpecialOutputs: no command replaces a special file, or a link to one.
func TestSpecialOutputs(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := syscall.Mkfifo(at("pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("socket"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	names := map[string]string{"pipe": "a pipe", "socket": "a socket"}
	if err := syscall.Mknod(at("device"), syscall.S_IFCHR|0o600, 240<<8|77); err == nil {
		names["device"] = "a device"
	}
	for name, what := range maps.Clone(names) {
		if err := os.Symlink(name, at("link-to-"+name)); err != nil {
			t.Fatal(err)
		}
		names["link-to-"+name] = what
	}
	if runtime.GOOS == "linux" {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), at("stdout")); err != nil { // what /dev/stdout is
			t.Fatal(err)
		}
		names["stdout"] = "a pipe"
	}
	before := listing(t, dir)
	for name, what := range names {
		for _, w := range writers {
			args := strings.Fields(strings.NewReplacer("ABSENT", filepath.Join(dir, "absent"), "OUT", at(name)).Replace(w))
			r := llmq(t, args...)
			if r.code != exitFailure || !strings.Contains(r.stderr, at(name)+": "+what+", not a regular file") || r.stdout != "" {
				t.Errorf("%s to %s: exit %d, %q", w, name, r.code, r.stderr)
			}
			if after := listing(t, dir); !slices.Equal(before, after) {
				t.Fatalf("%s to %s left %v, before %v", w, name, after, before)
			}
		}
	}
}

// TestSpecialParts: nor where a part of a split file would be.
func TestSpecialParts(t *testing.T) {
	ckpt, dir := folder(t, "llama"), t.TempDir()
	args := []string{"convert", ckpt, "-o", filepath.Join(dir, "out.gguf"), "--split-max-size", "50K", "--force"}
	parts := mustJSON(t, planKeys, append(args, "--dry-run")...)["parts"].([]any)
	for _, i := range []int{0, 1, len(parts) - 1} {
		part := parts[i].(string)
		if err := syscall.Mkfifo(part, 0o644); err != nil {
			t.Fatal(err)
		}
		before := listing(t, dir)
		if r := llmq(t, args...); r.code != exitFailure || !strings.Contains(r.stderr, part+": a pipe, not a regular file") {
			t.Errorf("part %d: exit %d, %q", i, r.code, r.stderr)
		}
		if after := listing(t, dir); !slices.Equal(before, after) {
			t.Errorf("part %d left %v, before %v", i, after, before)
		}
		os.Remove(part)
	}
}

// TestDanglingOutput: a link to nothing creates what it leads to.
func TestDanglingOutput(t *testing.T) {
	dir := t.TempDir()
	link, target := filepath.Join(dir, "link.gguf"), filepath.Join(dir, "target.gguf")
	if err := os.Symlink("target.gguf", link); err != nil {
		t.Fatal(err)
	}
	ckpt := folder(t, "qwen3")
	must(t, "convert", ckpt, "-o", link)
	if fi, err := os.Lstat(target); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("the target: %v, %v", fi, err)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link: %v, %v", fi, err)
	}
	if r := llmq(t, "convert", ckpt, "-o", link); r.code != exitFailure || !strings.Contains(r.stderr, "exists; --force replaces it") {
		t.Errorf("again: exit %d, %q", r.code, r.stderr)
	}
}

// TestStdoutIsOutput: what a command prints must not go to the file that it replaces.
func TestStdoutIsOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.gguf")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stderr strings.Builder
	code := (&app{strings.NewReader(""), f, &stderr}).run(t.Context(), []string{"convert", folder(t, "qwen3"), "-o", path, "--force", "--json"})
	if fi, err := f.Stat(); code != exitFailure || !strings.Contains(stderr.String(), "standard output goes to the output file") || err != nil || fi.Size() != 0 {
		t.Errorf("exit %d, %q", code, stderr.String())
	}
}

// TestKilled: what a killed run has left is found by the next run in that folder, said, and removed; a run that lives keeps
// its file.
func TestKilled(t *testing.T) {
	dir, out := folder(t, "llama"), t.TempDir()
	start := func(name string) *exec.Cmd {
		args := append([]string{"quantize", dir, "-o", filepath.Join(out, name), "--refine", "1000000"}, calibrate...)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), argsVariable+"="+strings.Join(args, "\n"))
		before := len(listing(t, out))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(30 * time.Second); len(listing(t, out)) == before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("there is no output under way")
			}
		}
		time.Sleep(50 * time.Millisecond) // from the file's creation to its size
		return cmd
	}
	alive := start("alive.gguf")
	defer func() {
		alive.Process.Signal(os.Interrupt)
		alive.Wait()
	}()
	killed := start("killed.gguf")
	killed.Process.Kill()
	killed.Wait()
	if left := listing(t, out); len(left) != 3 { // the folder, and two files
		t.Fatalf("%v", left)
	}
	// A dry run writes nothing, and removes nothing.
	must(t, "convert", dir, "-o", filepath.Join(out, "next.gguf"), "--dry-run")
	if left := listing(t, out); len(left) != 3 {
		t.Errorf("after a dry run: %v", left)
	}
	r := must(t, "convert", dir, "-o", filepath.Join(out, "next.gguf"))
	if n := strings.Count(r.stderr, "llmq: warning: removed "+filepath.Join(out, ".llmq-")); n != 1 || !strings.Contains(r.stderr, " that a killed run has left\n") {
		t.Errorf("%q names %d files, want 1", r.stderr, n)
	}
	if left := listing(t, out); len(left) != 3 || !strings.Contains(left[1], ".llmq-") || !strings.Contains(left[2], "next.gguf") {
		t.Errorf("left %v", left)
	}
}

// TestSpecialInputs: no command waits for a pipe that nobody writes to, nor reads a device.
func TestSpecialInputs(t *testing.T) {
	dir := folder(t, "llama")
	pipe, device := filepath.Join(t.TempDir(), "pipe"), filepath.Join(t.TempDir(), "device")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, line := range []string{"eval CKPT --text INPUT", "eval CKPT --task INPUT", "tokenize CKPT --text INPUT", "quantize --print-recipe --recipe INPUT",
		"quantize CKPT -o OUT --calib INPUT", "quantize CKPT -o OUT --calib " + license + " --calib-tokens 1024 --seq-len 64 --held-out INPUT",
		"profile CKPT -o OUT --calib INPUT", "profile CKPT -o OUT --calib " + license + " --calib-tokens 1024 --seq-len 64 --held-out INPUT",
		"report INPUT -o OUT", "inspect INPUT", "eval INPUT --text " + license} {
		lines = append(lines, strings.ReplaceAll(line, "INPUT", pipe))
		if err := syscall.Mknod(device, syscall.S_IFCHR|0o600, 240<<8|77); err == nil || errors.Is(err, fs.ErrExist) {
			lines = append(lines, strings.ReplaceAll(line, "INPUT", device))
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	for _, line := range lines {
		args := strings.Fields(strings.NewReplacer("CKPT", dir, "OUT", out).Replace(line))
		if r := llmq(t, args...); r.code != exitFailure || !strings.Contains(r.stderr, "regular file") {
			t.Errorf("%s: exit %d, %q", line, r.code, r.stderr)
		}
	}
	if left := listing(t, filepath.Dir(out)); len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

// TestHugeInputs: a file of a terabyte, nearly all of it a hole, is refused by its size, wherever a file is read as a whole.
func TestHugeInputs(t *testing.T) {
	for name, lines := range map[string][]string{
		"config.json": {"inspect CKPT"}, "tokenizer.json": {"inspect CKPT"}, "tokenizer_config.json": {"inspect CKPT"},
		"generation_config.json": {"inspect CKPT"}, "model.safetensors.index.json": {"inspect CKPT"}, "hf_quant_config.json": {"inspect CKPT"},
		"README.md": {"inspect CKPT"}, "adapter_config.json": {"convert CKPT --lora CKPT -o OUT"},
		"x.json": {"report FILE -o OUT", "eval CKPT --task FILE"},
		"x.txt": {"eval CKPT --text FILE", "tokenize CKPT --text FILE", "quantize --print-recipe --recipe FILE",
			"quantize CKPT -o OUT --calib " + license + " --calib-tokens 1024 --seq-len 64 --held-out FILE"},
	} {
		dir := folder(t, "llama")
		path, out := filepath.Join(dir, name), filepath.Join(t.TempDir(), "out")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(1<<40), f.Close()); err != nil {
			t.Skipf("no file of 1 TiB, nearly all of it a hole: %v", err)
		}
		for _, line := range lines {
			r := llmq(t, strings.Fields(strings.NewReplacer("CKPT", dir, "OUT", out, "FILE", path).Replace(line))...)
			if r.code != exitFailure || !strings.Contains(r.stderr, name+": ") || !strings.Contains(r.stderr, "more than ") {
				t.Errorf("%s, %s: exit %d, %q", name, line, r.code, r.stderr)
			}
		}
	}
}
