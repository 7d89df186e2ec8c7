#!/bin/sh
# Make an authority of your own, and a certificate for each server, in the current directory: once, on a machine that
# you trust. ca.key stays there; ca.pem goes to every host; postgres.* and broker.* each to theirs.
set -eu
umask 077
domain=${1:-bank.test} days=${2:-365}
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"

openssl req -x509 $key -days "$days" -subj "/CN=$domain" -keyout ca.key -out ca.pem \
    -addext keyUsage=critical,keyCertSign,cRLSign
for server in postgres broker; do
    openssl req $key -subj "/CN=$server.$domain" -keyout $server.key -out $server.csr
    # Clients look for the name by which they call a server here, and not in its CN.
    printf '%s\n' "subjectAltName = DNS:$server.$domain" 'extendedKeyUsage = serverAuth' \
        'subjectKeyIdentifier = hash' 'authorityKeyIdentifier = keyid' >$server.ext
    openssl x509 -req -days "$days" -in $server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
        -extfile $server.ext -out $server.pem
    rm $server.csr $server.ext
done
openssl verify -x509_strict -CAfile ca.pem postgres.pem broker.pem
