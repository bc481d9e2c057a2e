package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// TestDescribe builds a small program with one dependency in a repository of its own.
func TestDescribe(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	for path, content := range map[string]string{
		"go.mod":     "module example.org/tool\n\ngo 1.26\n\nrequire example.org/dep v1.2.3\n\nreplace example.org/dep => ./dep\n",
		"main.go":    "package main\n\nimport \"example.org/dep\"\n\nfunc main() { dep.F() }\n",
		"dep/go.mod": "module example.org/dep\n\ngo 1.26\n",
		"dep/dep.go": "package dep\n\nfunc F() {}\n",
		".gitignore": "tool-*\n",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run("git", "init", "-q")
	run("git", "add", "-A")
	run("git", "commit", "-q", "-m", "first")
	run("go", "build", "-buildvcs=true", "-o", "tool-a")
	run("go", "build", "-buildvcs=false", "-o", "tool-b")

	doc, err := describe([]string{filepath.Join(dir, "tool-a")})
	if err != nil {
		t.Fatal(err)
	}
	if doc.Creation.Created != "2026-01-02T03:04:05Z" || !strings.HasPrefix(doc.Name, "tool v0.0.0-20260102030405-") {
		t.Errorf("the document is %q of %s", doc.Name, doc.Creation.Created)
	}
	if len(doc.Packages) != 2 || doc.Packages[0].Name != "example.org/tool" || doc.Packages[1].Name != "./dep" {
		t.Errorf("packages %v", doc.Packages)
	}
	if len(doc.Files) != 1 || doc.Files[0].Name != "./tool-a" || len(doc.Files[0].Checksums[1].Value) != 64 {
		t.Errorf("files %v", doc.Files)
	}
	how := map[string]int{}
	for _, r := range doc.Relationships {
		how[r.Type]++
	}
	for _, want := range []string{"DESCRIBES", "DEPENDS_ON", "GENERATED_FROM", "STATIC_LINK"} {
		if how[want] != 1 {
			t.Errorf("%d relationships %s", how[want], want)
		}
	}
	if _, err := describe([]string{filepath.Join(dir, "tool-b")}); err == nil || !strings.Contains(err.Error(), "was not built from a commit as it is") {
		t.Errorf("error %v", err)
	}
	if _, err := describe([]string{"main.go"}); err == nil {
		t.Error("a text has a bill of materials")
	}
}

func TestModule(t *testing.T) {
	p := module(&debug.Module{Path: "github.com/BurntSushi/toml", Version: "v1.0.0", Sum: "h1:x="})
	if p.Download != "https://proxy.golang.org/github.com/!burnt!sushi/toml/@v/v1.0.0.zip" || p.SPDXID != "SPDXRef-Module-github.com-BurntSushi-toml-v1.0.0" {
		t.Errorf("%+v", p)
	}
}
