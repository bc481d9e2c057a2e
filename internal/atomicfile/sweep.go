package atomicfile

import (
	"os"
	"path/filepath"
	"strings"
)

// Leftover is a temporary file or folder that a killed process left behind.
type Leftover struct {
	Path  string
	Bytes int64
}

// Sweep removes the temporary files and folders in dir whose writers have gone, and returns them. A writer holds a lock on its file for
// as long as it lives, so that files being written by this or any other process stay, as do those that cannot be removed
// or asked about, and both folders of a Commit that Recover can undo. Names that are not those of temporary files, and links, are not touched.
func Sweep(dir string) []Leftover {
	entries, _ := os.ReadDir(dir) // a folder that cannot be read shows no files
	var gone []Leftover
	for _, e := range entries {
		name := e.Name()
		if !e.Type().IsRegular() && !e.IsDir() || !strings.HasPrefix(name, tempPrefix) || !strings.HasSuffix(name, tempSuffix) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		path := filepath.Join(dir, name)
		if isUnfinished(path) {
			continue
		}
		if e.IsDir() {
			if committing(dir, name) {
				continue
			}
			if bytes := folderBytes(path); removeAbandoned(filepath.Join(path, lockName)) && os.RemoveAll(path) == nil {
				gone = append(gone, Leftover{path, bytes})
			}
		} else if removeAbandoned(path) {
			gone = append(gone, Leftover{path, info.Size()})
		}
	}
	return gone
}

// folderBytes is the size of the files in a folder.
func folderBytes(dir string) (bytes int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			bytes += info.Size()
		}
	}
	return bytes
}

// isUnfinished says whether this process writes the temporary file.
func isUnfinished(tmp string) bool {
	mu.Lock()
	defer mu.Unlock()
	return unfinished[tmp]
}
