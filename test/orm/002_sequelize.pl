# Sequelize's save(), upsert() and bulkCreate() lose nothing and send nothing twice.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use ORM;

$ENV{NODE_PATH} = $ENV{ONESIGNAL_NODE_MODULES};
ORM::run('Sequelize', 'node', "$FindBin::RealBin/sequelize_app.js");
