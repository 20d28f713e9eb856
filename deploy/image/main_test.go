package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unpack reads an archive's files.
func unpack(t *testing.T, packed []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for reader := tar.NewReader(bytes.NewReader(packed)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(content)
	}
}

// follow reads the blob that a descriptor leads to and checks that it is the one.
func follow(t *testing.T, files map[string]string, d descriptor) string {
	t.Helper()
	content, found := files["blobs/"+strings.ReplaceAll(d.Digest, ":", "/")]
	if !found {
		t.Fatalf("no blob %s", d.Digest)
	}
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))); got != d.Digest || len(content) != d.Size {
		t.Errorf("blob %s: %d bytes with digest %s, want %d", d.Digest, len(content), got, d.Size)
	}
	return content
}

func decode[T any](t *testing.T, text string) (value T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestAnImageLeadsFromItsIndexToItsPrograms(t *testing.T) {
	folder := t.TempDir()
	programs := []string{filepath.Join(folder, "first"), filepath.Join(folder, "second")}
	for _, program := range programs {
		if err := os.WriteFile(program, []byte("content of "+filepath.Base(program)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	below := filepath.Join(folder, "below.tar")
	if err := os.WriteFile(below, []byte("more files"), 0o600); err != nil {
		t.Fatal(err)
	}
	var image, again bytes.Buffer
	args := append(append([]string{"tendril.test/x:1"}, programs...), below)
	if err := errors.Join(run(args, &image), run(args, &again)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(image.Bytes(), again.Bytes()) {
		t.Error("the same programs made two images")
	}
	files := unpack(t, image.Bytes())
	index := decode[struct{ Manifests []descriptor }](t, files["index.json"])
	if got := index.Manifests[0].Annotations["io.containerd.image.name"]; got != args[0] {
		t.Errorf("name %q, want %q", got, args[0])
	}
	manifest := decode[struct {
		Config descriptor
		Layers []descriptor
	}](t, follow(t, files, index.Manifests[0]))
	config := decode[struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}](t, follow(t, files, manifest.Config))
	if got, want := config.Config.Entrypoint, []string{"/first"}; !cmp.Equal(got, want) {
		t.Errorf("entry point %v, want %v", got, want)
	}
	if got, want := config.RootFS.DiffIDs, []string{manifest.Layers[0].Digest, manifest.Layers[1].Digest}; !cmp.Equal(got, want) {
		t.Errorf("layers of the configuration %v, want %v", got, want)
	}
	if got := follow(t, files, manifest.Layers[0]); got != "more files" {
		t.Errorf("lowest layer %q, want the archive as it is", got)
	}
	got := unpack(t, []byte(follow(t, files, manifest.Layers[1])))
	want := map[string]string{"first": "content of first", "second": "content of second"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func TestAnImageOfNothingIsRefused(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"name"}, "usage:"},
		{[]string{"name", filepath.Join(t.TempDir(), "none")}, "no such file"},
	} {
		if err := run(test.args, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.args, err, test.want)
		}
	}
}
