package hub

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A folder outside of the cache has the files under their own names, and what the hub's `hf download --local-dir` keeps beside them:
//
//	FOLDER/.cache/huggingface/download/PATH.metadata                commit, digest and time, a line each
//	FOLDER/.cache/huggingface/download/HASH.DIGEST.incomplete       HASH is that of PATH.metadata's last part
//	FOLDER/.cache/huggingface/download/PATH.lock
var folderState = filepath.Join(".cache", "huggingface", "download")

// folderPlace is a file's place in a folder.
func folderPlace(dir string, l *Listing, f File) place {
	state := filepath.Join(dir, folderState, filepath.FromSlash(f.Path))
	metadata := state + ".metadata"
	name := sha1.Sum([]byte(filepath.Base(metadata)))
	short := base64.URLEncoding.EncodeToString(name[:])
	return place{
		content:    filepath.Join(dir, filepath.FromSlash(f.Path)),
		incomplete: filepath.Join(filepath.Dir(state), short+"."+string(f.Digest)+".incomplete"),
		lock:       state + ".lock",
		note: func() error {
			now := float64(time.Now().UnixMicro()) / 1e6
			return writeFile(metadata, fmt.Sprintf("%s\n%s\n%s\n", l.Commit, f.Digest, strconv.FormatFloat(now, 'f', 6, 64)))
		},
	}
}

// inFolder says whether f is in the folder already. Another file under its name is an error without force.
func (c *Client) inFolder(ctx context.Context, dir string, f File, p place, force bool) (bool, error) {
	info, err := os.Stat(p.content)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("hub: %w", err)
	}
	if info.Size() == f.Bytes {
		if noted(filepath.Join(dir, folderState, filepath.FromSlash(f.Path)+".metadata"), f.Digest, info.ModTime()) {
			return true, nil
		}
		same, err := holds(ctx, p.content, &f)
		if err != nil {
			return false, fmt.Errorf("hub: %w", err)
		}
		if same {
			return true, p.note()
		}
	}
	if !force {
		return false, fmt.Errorf("hub: %s exists, and is another than the repository's; --force replaces it", p.content)
	}
	return false, nil
}

// noted says whether metadata tells of the digest, written after the file's last change.
func noted(metadata string, digest Digest, changed time.Time) bool {
	b, err := os.ReadFile(metadata)
	lines := strings.Split(string(b), "\n")
	if err != nil || len(lines) < 3 || lines[1] != string(digest) {
		return false
	}
	at, err := strconv.ParseFloat(lines[2], 64)
	return err == nil && float64(changed.UnixMicro())/1e6 <= at
}

// begin makes the folder that holds what a download keeps beside the files, which git is to leave alone.
func begin(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, folderState), 0o755); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	ignore := filepath.Join(dir, filepath.Dir(folderState), ".gitignore")
	if _, err := os.Stat(ignore); err == nil {
		return nil
	}
	return writeFile(ignore, "*")
}
