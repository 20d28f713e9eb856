package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// call makes a gRPC call of one message, which is in hexadecimal, and prints its status. The certificate and its key are in one file; without
// one the caller is a stranger.
func call(url, ca, certificate, message string) error {
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	authorities, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	if !config.RootCAs.AppendCertsFromPEM(authorities) {
		return fmt.Errorf("%s has no certificate", ca)
	}
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, certificate)
		if err != nil {
			return err
		}
		// Whatever authorities the server says that it knows.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	body, err := hex.DecodeString(message)
	if err != nil {
		return err
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...) // not compressed
	request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(frame))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body) // the trailer comes after it
	err = errors.Join(err, response.Body.Close())
	told := response.Trailer
	if response.Header.Get("Grpc-Status") != "" { // nothing but a status came
		told = response.Header
	}
	fmt.Println("status", told.Get("Grpc-Status"), told.Get("Grpc-Message"))
	return err
}
