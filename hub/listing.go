package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// File is a file of a repository.
type File struct {
	Path   string // with slashes
	Bytes  int64
	Digest Digest
}

// Listing is what a revision of a repository holds.
type Listing struct {
	Ref
	Commit string
	Files  []File
}

// maxListingBytes is beyond any repository's: a file takes some 200 bytes.
const maxListingBytes = 64 << 20

// List asks what a revision holds.
func (c *Client) List(ctx context.Context, ref Ref) (*Listing, error) {
	address := fmt.Sprintf("%s/api/models/%s/revision/%s?blobs=true", c.Endpoint, ref.Repo, url.PathEscape(ref.Revision))
	r := &retry{c: c, what: ref.String()}
	var b []byte
	for {
		resp, err := c.get(ctx, ref, address, span{}, r)
		if err != nil {
			return nil, err
		}
		b, err = io.ReadAll(io.LimitReader(resp.Body, maxListingBytes+1))
		resp.Body.Close()
		if err == nil {
			break
		}
		if err := r.wait(ctx, err, 0); err != nil {
			return nil, err
		}
	}
	if len(b) > maxListingBytes {
		return nil, fmt.Errorf("hub: %s: its list of files has more than %d bytes", ref, maxListingBytes)
	}
	return parseListing(ref, b)
}

// parseListing reads the hub's answer. Paths and digests become names of files, and so are checked.
func parseListing(ref Ref, b []byte) (*Listing, error) {
	var answer struct {
		SHA      string
		Siblings []struct {
			RFilename string
			Size      int64
			BlobID    string
			LFS       *struct {
				SHA256, OID string
				Size        int64
			}
		}
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("hub: %s: the server's list of files: %w", ref, err)
	}
	if !commitHash.MatchString(answer.SHA) {
		return nil, fmt.Errorf("hub: %s: the server says that its commit is %.60q", ref, answer.SHA)
	}
	l := &Listing{Ref: ref, Commit: answer.SHA}
	for _, s := range answer.Siblings {
		f := File{Path: s.RFilename, Bytes: s.Size, Digest: Digest(s.BlobID)}
		if s.LFS != nil {
			f.Bytes, f.Digest = s.LFS.Size, Digest(s.LFS.SHA256)
			if f.Digest == "" {
				f.Digest = Digest(strings.TrimPrefix(s.LFS.OID, "sha256:"))
			}
		}
		switch {
		case !filepath.IsLocal(filepath.FromSlash(f.Path)), strings.ContainsAny(f.Path, "\\:\x00"), strings.HasSuffix(f.Path, "/"):
			return nil, fmt.Errorf("hub: %s: the server lists a file %.200q, which is no path inside a folder", ref, f.Path)
		case f.Bytes < 0:
			return nil, fmt.Errorf("hub: %s: %s: the server says that it has %d bytes", ref, f.Path, f.Bytes)
		case !f.Digest.valid():
			return nil, fmt.Errorf("hub: %s: %s: the server gives %.80q as its digest, neither a SHA-256 nor a git object", ref, f.Path, f.Digest)
		}
		l.Files = append(l.Files, f)
	}
	return l, nil
}

// Lookup finds a file.
func (l *Listing) Lookup(path string) (File, bool) {
	for _, f := range l.Files {
		if f.Path == path {
			return f, true
		}
	}
	return File{}, false
}

// address is where a file's content is.
func (c *Client) address(l *Listing, f File) string {
	parts := strings.Split(f.Path, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return fmt.Sprintf("%s/%s/resolve/%s/%s", c.Endpoint, l.Repo, l.Commit, strings.Join(parts, "/"))
}

// Digest is a file's content in hexadecimal: SHA-256 if it is kept by Git LFS, else the SHA-1 of its git object. It is also the
// content's name in the cache.
type Digest string

var digestForm = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

func (d Digest) valid() bool { return digestForm.MatchString(string(d)) }
