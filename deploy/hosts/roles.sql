-- psql --variable lab_password=… --variable worker_password=… --file roles.sql, as a superuser on the server itself.
CREATE DATABASE bankrun;
REVOKE ALL ON DATABASE bankrun FROM PUBLIC;
CREATE ROLE bankrun_lab LOGIN PASSWORD :'lab_password';
CREATE ROLE bankrun_worker LOGIN PASSWORD :'worker_password';
GRANT CONNECT, CREATE ON DATABASE bankrun TO bankrun_lab; -- its schema is all that it makes
GRANT CONNECT ON DATABASE bankrun TO bankrun_worker;      -- the lab grants it what transfers take, and no more
