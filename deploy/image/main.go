// Command image writes a container image of static programs, an archive in the OCI image layout (OCI Image Format
// Specification 1.1) that `ctr images import`, podman and skopeo read:
//
//	image [-cmd ARGUMENT] NAME PROGRAM... [LAYER.tar] > FILE
//
// The programs lie in the root folder, and the first of them is what runs, with the argument if a container names none. An archive of more files may lie below them, as it is.
// The same programs make the same bytes.
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
	"runtime"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// archive collects the layout's files.
type archive struct {
	tar *tar.Writer
	err error
}

// descriptor points to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (a *archive) file(name string, mode int64, content []byte) {
	header := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}
	if a.err == nil {
		a.err = a.tar.WriteHeader(&header)
	}
	if a.err == nil {
		_, a.err = a.tar.Write(content)
	}
}

// blob adds content under its digest.
func (a *archive) blob(kind string, content []byte) descriptor {
	digest := fmt.Sprintf("%x", sha256.Sum256(content))
	a.file("blobs/sha256/"+digest, 0o644, content)
	return descriptor{MediaType: "application/vnd.oci.image." + kind, Digest: "sha256:" + digest, Size: len(content)}
}

// object is a blob of JSON.
func (a *archive) object(kind string, value any) descriptor {
	content, err := json.Marshal(value)
	a.err = errors.Join(a.err, err)
	return a.blob(kind, content)
}

// layer packs the programs. Layers are not compressed, so their digests are those of their content, too.
func layer(programs []string) ([]byte, error) {
	var packed bytes.Buffer
	a := archive{tar: tar.NewWriter(&packed)}
	for _, program := range programs {
		content, err := os.ReadFile(program)
		if err != nil {
			return nil, err
		}
		a.file(filepath.Base(program), 0o755, content)
	}
	return packed.Bytes(), errors.Join(a.err, a.tar.Close())
}

// layers of an image, lowest first, and what runs.
func layers(parts []string) (packed [][]byte, entry string, err error) {
	if last := len(parts) - 1; last > 0 && filepath.Ext(parts[last]) == ".tar" {
		below, err := os.ReadFile(parts[last])
		if err != nil {
			return nil, "", err
		}
		packed, parts = append(packed, below), parts[:last]
	}
	own, err := layer(parts)
	return append(packed, own), "/" + filepath.Base(parts[0]), err
}

func run(args []string, out io.Writer) error {
	runs := map[string]any{}
	if len(args) > 1 && args[0] == "-cmd" {
		runs["Cmd"], args = []string{args[1]}, args[2:]
	}
	if len(args) < 2 {
		return errors.New("usage: image [-cmd ARGUMENT] NAME PROGRAM... [LAYER.tar] > FILE")
	}
	name := args[0]
	packed, entry, err := layers(args[1:])
	if err != nil {
		return err
	}
	runs["Entrypoint"] = []string{entry}
	a := archive{tar: tar.NewWriter(out)}
	var content []descriptor
	var digests []string
	for _, layer := range packed {
		content = append(content, a.blob("layer.v1.tar", layer))
		digests = append(digests, content[len(content)-1].Digest)
	}
	config := a.object("config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": runs,
		"rootfs": map[string]any{"type": "layers", "diff_ids": digests},
	})
	manifest := a.object("manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": content,
	})
	manifest.Annotations = map[string]string{"io.containerd.image.name": name}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	a.err = errors.Join(a.err, err)
	a.file("index.json", 0o644, index)
	a.file("oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return errors.Join(a.err, a.tar.Close())
}
