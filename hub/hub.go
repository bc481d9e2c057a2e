// Package hub fetches model repositories of the Hugging Face hub, or of a server that answers as it does, into the cache that
// the hub's other tools share (huggingface.co/docs/huggingface_hub, "Understand caching").
//
//	CACHE/models--ORG--NAME/blobs/DIGEST                 a file's content; DIGEST.incomplete while it is on its way
//	CACHE/models--ORG--NAME/refs/REVISION                the commit that a branch or tag stood for when it was last asked for
//	CACHE/models--ORG--NAME/snapshots/COMMIT/PATH        a relative link to the content
//	CACHE/.locks/models--ORG--NAME/DIGEST.lock           held by whoever fetches that content
//
// It is our own because github.com/gomlx/go-huggingface v0.3.1, the library that there is, begins a cut transfer again from the
// first byte, checks neither size nor digest, tries nothing twice, and refuses the redirects by which large files come.
package hub

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// Scheme begins the name of a repository where a path could stand as well: hf:ORG/NAME@REVISION.
const Scheme = "hf:"

// defaultRevision is the hub's name for the branch that a repository shows.
const defaultRevision = "main"

// Ref names a revision of a model repository: a branch, a tag, a commit or refs/pr/N.
type Ref struct {
	Repo     string // ORG/NAME, or the NAME alone of a few old ones
	Revision string
}

// String is the name without Scheme.
func (r Ref) String() string {
	if r.Revision == defaultRevision {
		return r.Repo
	}
	return r.Repo + "@" + r.Revision
}

// repoName is what the hub allows: letters, digits, and dots, dashes and underscores in between.
var repoName = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$`)

var commitHash = regexp.MustCompile(`^[0-9a-f]{40}$`)

// IsName says whether a command line's argument names a repository, not a path: ./hf:x is a file.
func IsName(s string) bool { return strings.HasPrefix(s, Scheme) }

// ParseRef takes hf:ORG/NAME or hf:ORG/NAME@REVISION.
func ParseRef(s string) (Ref, error) {
	name, revision, given := strings.Cut(strings.TrimPrefix(s, Scheme), "@")
	if !given {
		revision = defaultRevision
	}
	switch {
	case !repoName.MatchString(name), strings.Contains(name, "--"), strings.Contains(name, ".."), len(name) > 2*96+1:
		return Ref{}, fmt.Errorf("%q names no repository: want %sORG/NAME or %sORG/NAME@REVISION", s, Scheme, Scheme)
	case revision == "", !filepath.IsLocal(filepath.FromSlash(revision)), strings.ContainsAny(revision, "\\:?*\"<>|@ \t\n"):
		return Ref{}, fmt.Errorf("%q: %q is no revision: want a branch, a tag or a commit", s, revision)
	}
	return Ref{name, revision}, nil
}

// folder is the repository's name in the cache.
func (r Ref) folder() string { return "models--" + strings.ReplaceAll(r.Repo, "/", "--") }
