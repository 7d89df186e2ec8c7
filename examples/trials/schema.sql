-- What the programs in this folder work on. Each runs in a database of its own, made by this file.
CREATE TABLE account (id int PRIMARY KEY, name text NOT NULL, balance int NOT NULL);
INSERT INTO account VALUES (1, 'John', 100), (2, 'Jane', 100), (3, 'Alice', 100);

CREATE TABLE tag (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
CREATE TABLE unique_tag (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);

CREATE TABLE doctor (name text PRIMARY KEY, on_call boolean NOT NULL);
INSERT INTO doctor VALUES ('ann', true), ('bob', true);

CREATE TABLE job (id int PRIMARY KEY, state text NOT NULL DEFAULT 'ready', taken_by text);
INSERT INTO job (id) VALUES (1), (2), (3);

CREATE TABLE room (id int PRIMARY KEY);
INSERT INTO room VALUES (7);
CREATE TABLE booking (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room int NOT NULL REFERENCES room,
    guest text NOT NULL,
    nights int4range NOT NULL
);

CREATE TABLE person (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL UNIQUE,
    token uuid NOT NULL DEFAULT gen_random_uuid(),
    joined timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE post (
    id bigserial PRIMARY KEY,
    person int NOT NULL REFERENCES person,
    body text NOT NULL,
    key uuid NOT NULL,
    written timestamptz NOT NULL
);
