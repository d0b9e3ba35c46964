# TypeORM's save(), update() and upsert() lose nothing and send nothing twice.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use ORM;

$ENV{NODE_PATH} = $ENV{ONESIGNAL_NODE_MODULES};
ORM::run('TypeORM', 'node', "$FindBin::RealBin/typeorm_app.js");
