// Command sbom prints the software bill of materials of Go programs as SPDX 2.3 in JSON (spdx.github.io/spdx-spec/v2.3): the files that
// are given, and the modules that the go command has built into them, as `go version -m` lists them.
//
//	go run ./internal/sbom FILE... > llmq.spdx.json
//
// The same files give the same bytes: the document's time is that of the commit.
package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, paths []string) error {
	doc, err := describe(paths)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

type document struct {
	SPDXVersion   string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	SPDXID        string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      creation       `json:"creationInfo"`
	Packages      []*spdxPackage `json:"packages"`
	Files         []file         `json:"files"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	Name         string        `json:"name"`
	SPDXID       string        `json:"SPDXID"`
	Version      string        `json:"versionInfo"`
	Download     string        `json:"downloadLocation"`
	Analyzed     bool          `json:"filesAnalyzed"`
	SourceInfo   string        `json:"sourceInfo,omitempty"`
	Concluded    string        `json:"licenseConcluded"`
	Declared     string        `json:"licenseDeclared"`
	Copyright    string        `json:"copyrightText"`
	ExternalRefs []externalRef `json:"externalRefs"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type file struct {
	Name      string     `json:"fileName"`
	SPDXID    string     `json:"SPDXID"`
	Types     []string   `json:"fileTypes"`
	Checksums []checksum `json:"checksums"`
	Concluded string     `json:"licenseConcluded"`
	Copyright string     `json:"copyrightText"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const (
	documentID = "SPDXRef-DOCUMENT"
	noAnswer   = "NOASSERTION"
)

// describe makes the document of programs of one main module.
func describe(paths []string) (*document, error) {
	if len(paths) == 0 {
		return nil, errors.New("no file given")
	}
	doc := &document{SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: documentID}
	paths = slices.Clone(paths)
	slices.Sort(paths)
	modules := map[string]*spdxPackage{}
	var main *spdxPackage
	all := sha256.New()
	for _, path := range paths {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if main == nil {
			main = module(&info.Main)
			main.SourceInfo = "built by " + info.GoVersion + " from commit " + setting(info, "vcs.revision")
			doc.Name = filepath.Base(info.Path) + " " + main.Version
			doc.Creation = creation{setting(info, "vcs.time"), []string{"Tool: llmq/internal/sbom"}}
			doc.Packages = append(doc.Packages, main)
		}
		if doc.Creation.Created == "" || setting(info, "vcs.modified") != "false" {
			return nil, fmt.Errorf("%s: it was not built from a commit as it is (go build -buildvcs=true)", path)
		}
		if id := module(&info.Main).SPDXID; id != main.SPDXID {
			return nil, fmt.Errorf("%s: it is of %s %s, others of %s", path, info.Main.Path, info.Main.Version, main.Version)
		}
		f, err := describeFile(path)
		if err != nil {
			return nil, err
		}
		doc.Files = append(doc.Files, *f)
		fmt.Fprintln(all, f.Name, f.Checksums)
		doc.relate(f.SPDXID, "GENERATED_FROM", main.SPDXID)
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			p := module(dep)
			if modules[p.SPDXID] == nil {
				modules[p.SPDXID] = p
				doc.Packages = append(doc.Packages, p)
				doc.relate(main.SPDXID, "DEPENDS_ON", p.SPDXID)
			}
			doc.relate(f.SPDXID, "STATIC_LINK", p.SPDXID)
		}
	}
	doc.relate(documentID, "DESCRIBES", main.SPDXID)
	doc.Namespace = "https://" + main.Name + "/sbom/" + hex.EncodeToString(all.Sum(nil))
	slices.SortFunc(doc.Packages[1:], func(a, b *spdxPackage) int { return strings.Compare(a.SPDXID, b.SPDXID) })
	return doc, nil
}

func (d *document) relate(from, how, to string) {
	d.Relationships = append(d.Relationships, relationship{from, how, to})
}

// module is a Go module's package. Licenses are not asserted: the build does not know them.
func module(m *debug.Module) *spdxPackage {
	p := &spdxPackage{
		Name: m.Path, SPDXID: id("Module", m.Path, m.Version), Version: m.Version, Download: noAnswer,
		Concluded: noAnswer, Declared: noAnswer, Copyright: noAnswer,
		ExternalRefs: []externalRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.Path + "@" + m.Version}},
	}
	if m.Sum != "" {
		p.Download = "https://proxy.golang.org/" + escapePath(m.Path) + "/@v/" + m.Version + ".zip"
		p.SourceInfo = "go.sum: " + m.Sum
	}
	return p
}

// escapePath writes a capital letter as ! and the small one, as module proxies do.
func escapePath(path string) string {
	var b strings.Builder
	for _, r := range path {
		if 'A' <= r && r <= 'Z' {
			b.WriteByte('!')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

func describeFile(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h1, h256 := sha1.New(), sha256.New() // SPDX demands the first
	if _, err := io.Copy(io.MultiWriter(h1, h256), f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	name := filepath.Base(path)
	return &file{"./" + name, id("File", name), []string{"BINARY"}, []checksum{
		{"SHA1", hex.EncodeToString(h1.Sum(nil))}, {"SHA256", hex.EncodeToString(h256.Sum(nil))},
	}, noAnswer, noAnswer}, nil
}

// id makes an identifier of letters, digits, dots and dashes, which are all that SPDX allows.
func id(parts ...string) string {
	return "SPDXRef-" + strings.Map(func(r rune) rune {
		if r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '-'
	}, strings.Join(parts, "-"))
}

func setting(info *debug.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}
